"""How many of something there are: SoRA's ranks, for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qpeft.compare.report import canvas
from qpeft.compare.report.marks import Mark


def draw(values: Sequence[int], name: str, mark: Mark, x_title: str, y_title: str) -> str:
    """A bar a whole number, its count above it. `values` is not empty."""
    with canvas.style(name):
        counts = dict(sorted(Counter(values).items()))
        chart = canvas.figure(220)
        plot = canvas.axes(chart)
        plot.bar(list(counts), list(counts.values()), width=0.7, color=mark.colour)
        for value, count in counts.items():
            plot.annotate(f"{count}", (value, count), xytext=(0, 3), textcoords="offset points", ha="center")
        plot.set_xlim(-0.6, max(counts) + 0.6)
        plot.set_ylim(0, 1.12 * max(counts.values()))
        plot.locator_params(integer=True, nbins=9)
        canvas.titles(chart, plot, x_title, y_title)
        return canvas.to_svg(chart)
