"""A picture of values with their means: a line for each adapter, a dot for each of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from forests import beside

WIDTH = 660  # points, as all lengths here
PITCH = 26  # of the lines
AXIS = 44  # below them


class Dots(NamedTuple):
    """A line: small dots, a large one for their mean, and words at the right."""

    label: str
    values: Sequence[float]
    mean: float
    words: str
    color: str


def draw(lines: Sequence[Dots], title: str, ticks: float, labels: float, words: float) -> Figure:
    """With a `title` below the axis and a tick every `ticks`; `labels` and `words` are the widths of
    the texts at the left and at the right.
    """
    height = len(lines) * PITCH
    whole = height + AXIS
    chart = Figure(figsize=(WIDTH / 72, whole / 72))
    chart.set_layout_engine("none")  # the labels have a place of their own
    place = (labels / WIDTH, AXIS / whole, (WIDTH - labels - words) / WIDTH, height / whole)
    axes: Axes = chart.add_axes(place)
    values = [value for line in lines for value in line.values]
    space = ticks / 5
    axes.set(xlim=(min(values) - space, max(values) + space), ylim=(height, 0), yticks=[])
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MultipleLocator(ticks))
    axes.set_xlabel(title)
    for number, line in enumerate(lines):
        y = (number + 0.5) * PITCH
        axes.plot(line.values, [y] * len(line.values), "o", color=line.color, alpha=0.35)
        axes.plot(line.mean, y, "o", color=line.color, markersize=9)
        for side, points, text in [(0, -labels + 4, line.label), (1, 8, line.words)]:
            beside(axes, y, side, points, text, color=line.color)
    return chart
