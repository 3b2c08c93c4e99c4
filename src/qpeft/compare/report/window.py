"""How far a chart reaches where a value lies far from the others, and the arrows that say that something lies beyond.

The rule is the box plot's: what is farther than 1.5 interquartile ranges from the middle half is shown at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULE = "The chart leaves out what is farther from the middle half of the values than 1.5 times its width."
_LENGTH = 9  # pixels of an arrow


def fences(values: Sequence[float]) -> tuple[float, float]:
    """Q1 - 1.5 (Q3 - Q1) and Q3 + 1.5 (Q3 - Q1); the whole range of fewer than four values, or of equal quartiles."""
    if len(values) > 3:
        first, _, third = quantiles(values, n=4, method="inclusive")
        if third > first:
            reach = 1.5 * (third - first)
            return first - reach, third + reach
    return min(values), max(values)


def arrow(plot: Axes, x: float, colour: str, up: bool = True) -> None:
    """An arrow at data `x` that ends at the upper or the lower edge of the chart."""
    plot.annotate(
        "", (x, float(up)), xycoords=("data", "axes fraction"), xytext=(0, -_LENGTH if up else _LENGTH),
        textcoords="offset points", annotation_clip=False,
        arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8},
    )  # fmt: skip
