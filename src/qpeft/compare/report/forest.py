"""Differences with their intervals, line by line: the zero line is what a reader looks for first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from qpeft.compare.report import canvas, numbers
from qpeft.compare.report.marks import Mark
from qpeft.compare.report.window import fences

_LINE = 38  # pixels a difference takes: its name and figures, and beneath them its interval
_STRETCH = 5  # an interval's end beyond this many times the median one leaves the chart as an arrow


@dataclass(frozen=True)
class Line:
    """A difference: `seeds` those it is the mean of; `low` and `high` None where one seed gives no interval."""

    name: str
    mark: Mark
    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    shown: bool  # the interval excludes 0, and the verdict says so
    indent: bool = False  # a control, beneath its method

    @property
    def reach(self) -> float:
        """The farthest from zero that the interval, or without one the mean, gets."""
        return max(abs(value) for value in (self.mean, self.low, self.high) if value is not None)


def draw(lines: Sequence[Line], name: str, x_title: str, lower_is_better: bool) -> str:
    """The chart as SVG. `lines` is not empty."""
    with canvas.style(name):
        chart = canvas.figure(_LINE * len(lines) + 50)
        plot = canvas.axes(chart, left=6, right=6, top=2, bottom=54)
        low, high = limits(lines)
        plot.set_xlim(low, high)
        plot.set_ylim(len(lines) - 0.5, -0.5)
        plot.set_yticks([])
        for row in range(1, len(lines)):
            plot.axhline(row - 0.5, color=canvas.FAINT, lw=0.7)
        plot.axvline(0, color=canvas.INK, lw=1)
        decimals = numbers.shared_places(numbers.half_width(line.low, line.high) for line in lines)
        for row, line in enumerate(lines):
            figures = numbers.interval(line.mean, line.low, line.high, decimals)
            plot.text(high, row - 0.23, figures, va="center", ha="right", size=canvas.FONT - 1)
            _draw_line(plot, row, line, low, high)
        plot.locator_params(axis="x", nbins=6)
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:+.4g}".replace("-", "\u2212") if value else "0")
        plot.set_xlabel(x_title, labelpad=20)
        _draw_directions(plot, lower_is_better)
        return canvas.to_svg(chart)


def limits(lines: Sequence[Line]) -> tuple[float, float]:
    """A range with zero in it, of the lines whose means no fence excludes; no single wide interval sets it."""
    low, high = fences([line.mean for line in lines])
    inside = [line for line in lines if low <= line.mean <= high]
    most = min(max(line.reach for line in inside), _STRETCH * median(line.reach for line in inside)) or 1.0
    values = [value for line in inside for value in (line.mean, line.low, line.high, *line.seeds) if value is not None]
    low, high = max(min(0.0, *values), -most), min(max(0.0, *values), most)
    rim = 0.06 * (high - low) or 1.0
    return min(low, -0.15 * high) - rim, max(high, -0.15 * low) + rim


def _draw_line(plot, row: int, line: Line, low: float, high: float) -> None:
    where, mark = row + 0.15, line.mark
    left = low + (0.045 if line.indent else 0.0) * (high - low)
    plot.text(left, row - 0.23, ("↳ " if line.indent else "") + line.name, color=mark.colour, va="center", ha="left")
    plot.plot(line.seeds, [where] * len(line.seeds), "o", ms=2.4, color=mark.colour, alpha=0.6, mew=0)
    if line.low is not None and line.high is not None:
        plot.plot([max(line.low, low), min(line.high, high)], [where] * 2, color=mark.colour, lw=1.4)
    if low <= line.mean <= high:
        face = mark.colour if line.shown else canvas.PAPER
        plot.plot(line.mean, where, mark.shape, ms=7, color=mark.colour, mfc=face, mew=1.3)
    for edge, beyond, shape in ((low, line.low, "<"), (high, line.high, ">")):
        value = line.mean if beyond is None else beyond
        if not low <= value <= high and (value < low) == (edge == low):
            plot.plot(edge, where, shape, ms=6, color=mark.colour, clip_on=False)


def _draw_directions(plot, lower_is_better: bool) -> None:
    left, right = ("better", "worse") if lower_is_better else ("worse", "better")
    for word, x, align in ((f"← {left}", -6, "right"), (f"{right} →", 6, "left")):
        plot.annotate(
            word, (0, 0), xycoords=("data", "axes fraction"), xytext=(x, -26), textcoords="offset points",
            ha=align, va="center", color=canvas.INK, size=canvas.FONT - 1,
        )  # fmt: skip
