"""Validation loss while training: all methods on one pair of axes, and each on its own with every seed as a dot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qpeft.studies.comparison.report import canvas
from qpeft.studies.comparison.report.labels import apart
from qpeft.studies.comparison.report.marks import REFERENCE, Mark
from qpeft.studies.comparison.report.numbers import short

_SMALL = 168  # width of a method's own chart: two beside each other on a phone


@dataclass(frozen=True)
class Path:
    """A method's evaluations: `x` and for each x the losses of the seeds."""

    name: str
    mark: Mark
    x: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]  # one tuple of losses per x

    @property
    def mean(self) -> list[float]:
        return [math.fsum(losses) / len(losses) for losses in self.seeds]


def path(name: str, mark: Mark, curves: Mapping[int, Sequence[Sequence[float | None]]], axis: str, per_step: float = 1):
    """The evaluations that every seed has, by "steps" (times `per_step`) or by mean "seconds"; None without any."""
    by_step = [
        {row[0]: (row[2], row[3]) for row in curve if row[2] is not None and math.isfinite(row[2])}
        for curve in curves.values()
    ]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    if not steps:
        return None
    losses = tuple(tuple(found[step][0] for found in by_step) for step in steps)
    if axis == "steps":
        return Path(name, mark, tuple(step * per_step for step in steps), losses)
    seconds = tuple(math.fsum(found[step][1] or 0.0 for found in by_step) / len(by_step) for step in steps)
    return Path(name, mark, seconds, losses)


def draw_all(paths: Sequence[Path], name: str, x_title: str, y_title: str) -> str:
    """Every path as a line with the band from its best seed to its worst, named at its end."""
    with canvas.style(name):
        chart = canvas.figure(max(260, 90 + 14 * len(paths)))
        plot = canvas.axes(chart, right=8 + 6.2 * min(18, max(len(item.name) for item in paths)))
        for item in paths:
            _draw_path(plot, item, band=0.1)
        _limits(plot, paths)
        _draw_names(plot, paths)
        canvas.titles(chart, plot, x_title, y_title)
        return canvas.to_svg(chart)


def draw_one(item: Path, others: Sequence[Path], name: str) -> str:
    """One path with its band and every seed as a dot, before the others in grey; axes as in every other such chart."""
    with canvas.style(name):
        chart = canvas.figure(136, _SMALL)
        plot = canvas.axes(chart, left=30, right=8, top=22, bottom=18)
        for other in others:
            plot.plot(other.x, other.mean, color=canvas.FAINT, lw=1)
        _draw_path(plot, item, band=0.18)
        for x, losses in zip(item.x, item.seeds, strict=True):
            plot.plot([x] * len(losses), losses, ".", ms=3.5, color=item.mark.colour, mew=0, alpha=0.7)
        _limits(plot, [item, *others])
        plot.locator_params(nbins=4)
        chart.text(0, 1, item.name, va="top", ha="left", color=item.mark.colour)
        return canvas.to_svg(chart)


def _draw_path(plot, item: Path, band: float) -> None:
    lows, highs = [min(losses) for losses in item.seeds], [max(losses) for losses in item.seeds]
    plot.fill_between(item.x, lows, highs, color=item.mark.colour, alpha=band, lw=0)
    dashes = (0, (4, 2)) if item.mark is REFERENCE else "-"
    plot.plot(item.x, item.mean, color=item.mark.colour, ls=dashes)


def _limits(plot, paths: Sequence[Path]) -> None:
    """All that is seen of the losses; what blew up beyond twice the start is cut off."""
    start = max(item.mean[0] for item in paths)
    values = [loss for item in paths for losses in item.seeds for loss in losses]
    low, high = min(values), min(max(values), 2 * start)
    rim = 0.06 * (high - low) or 0.1
    plot.set_ylim(low - rim, high + rim)
    plot.set_xlim(0, max(item.x[-1] for item in paths) * 1.02 or 1)
    plot.xaxis.set_major_formatter(lambda value, _: short(value))
    plot.locator_params(axis="x", nbins=5)


def _draw_names(plot, paths: Sequence[Path]) -> None:
    ends = [plot.transData.transform((item.x[-1], item.mean[-1])) for item in paths]
    frame = plot.get_window_extent()
    heights = apart([float(y) for _, y in ends], canvas.FONT + 1, float(frame.y0), float(frame.y1))
    for item, end, height in zip(paths, ends, heights, strict=True):
        x = frame.x1 + 8
        plot.plot(
            [*end, x - 2][::2], [end[1], height], color=item.mark.colour, lw=0.6, transform=None, clip_on=False
        )
        plot.plot(*end, item.mark.shape, ms=5, color=item.mark.colour, transform=None, clip_on=False)
        plot.text(
            x, height, item.name, va="center_baseline", ha="left",
            size=canvas.FONT - 1, color=item.mark.colour, transform=None,
        )  # fmt: skip
