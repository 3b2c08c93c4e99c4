"""Validation loss while training: all methods on one pair of axes, and each on its own with every seed as a dot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qpeft.compare.report import canvas, numbers
from qpeft.compare.report.labels import apart
from qpeft.compare.report.marks import REFERENCE, Mark
from qpeft.compare.report.numbers import short
from qpeft.compare.report.window import arrow, fences

_SMALL = 168  # width of a method's own chart: two beside each other on a phone

Curve = list[list[Any]]  # [step, training loss | None, validation loss | None, seconds] each


@dataclass(frozen=True)
class Path:
    """Where a method went: for each x the values of the seeds that succeeded; `lost`: (x, value) of the others."""

    name: str
    mark: Mark
    x: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]  # one tuple of values per x
    lost: tuple[tuple[float, float], ...] = ()

    @property
    def mean(self) -> list[float]:
        return [math.fsum(values) / len(values) for values in self.seeds]

    def since(self, x: float) -> Path:
        """What is left of it from `x` on."""
        first = next((index for index, at in enumerate(self.x) if at >= x), len(self.x))
        return Path(self.name, self.mark, self.x[first:], self.seeds[first:])


def ceiling(paths: Sequence[Path], start: bool = True) -> float:
    """The highest loss that a chart of `paths` shows: none far above the others, and with `start` the usual first."""
    _, high = fences([value for item in paths for value in item.mean[start:]])
    high = max(high, median(item.mean[0] for item in paths)) if start else high
    return max(value for item in paths for value in item.mean if value <= high)


def above(paths: Sequence[Path], top: float) -> str:
    """The caption: which means rise above `top`, and where."""
    found = []
    for item in paths:
        out = [value for value in item.mean if value > top]
        if len(out) == len(item.mean):
            found.append(f"{item.name} from {numbers.number(item.mean[0])} to {numbers.number(item.mean[-1])}")
        elif out:
            found.append(f"{item.name} at {'its start' if item.mean[0] > top else 'most'}, {numbers.number(max(out))}")
    return f"Above the chart, at the arrows: {'; '.join(found)}." if found else ""


def of_steps(name: str, mark: Mark, whole: Sequence[Curve], lost: Sequence[Curve], per_step: float = 1) -> Path | None:
    """The evaluations that every curve of `whole` has, at its steps times `per_step`; None without any."""
    found = [_evaluations(curve) for curve in whole]
    steps = _shared(found)
    if not steps:
        return None
    values = tuple(tuple(curve[step][0] for curve in found) for step in steps)
    crosses = tuple((step * per_step, loss) for curve in lost for step, (loss, _) in _evaluations(curve).items())
    return Path(name, mark, tuple(step * per_step for step in steps), values, crosses)


def of_seconds(name: str, mark: Mark, whole: Sequence[Curve]) -> Path | None:
    """The same against the mean time at which the seeds were there."""
    found = [_evaluations(curve) for curve in whole]
    steps = _shared(found)
    if not steps:
        return None
    values = tuple(tuple(curve[step][0] for curve in found) for step in steps)
    return Path(name, mark, tuple(math.fsum(curve[step][1] for curve in found) / len(found) for step in steps), values)


def draw_all(
    paths: Sequence[Path], name: str, x_title: str, y_title: str, top: float = math.inf, left: float = 0.0
) -> str:
    """Every path as a line with the band from its lowest seed to its highest, named at its end.

    What is above `top` or before `left` is not shown; arrows say where means leave the chart.
    """
    with canvas.style(name):
        chart = canvas.figure(max(260, 90 + 20 * len(paths)))
        labels = [_label(item, top) for item in paths]
        plot = canvas.axes(chart, right=8 + 6.2 * min(20, max(map(len, labels))))
        for item in paths:
            _draw_path(plot, item, band=0.12)
        _limits(plot, paths, top, left)
        _draw_names(plot, paths, labels)
        for item in paths:
            _draw_arrow(plot, item, item.mean, top)
        canvas.titles(chart, plot, x_title, y_title)
        return canvas.to_svg(chart)


def draw_one(item: Path, others: Sequence[Path], name: str, top: float = math.inf) -> str:
    """One path with its band and every seed as a dot, lost seeds as crosses, before the others in grey.

    A path that lies wholly above `top` is shown nevertheless, on an axis of its own.
    """
    has_own_axis = min(item.mean) > top
    with canvas.style(name):
        chart = canvas.figure(150, _SMALL)
        plot = canvas.axes(chart, left=30, right=8, top=22, bottom=18)
        for other in others:
            plot.plot(other.x, other.mean, color=canvas.FAINT, lw=1)
        _draw_path(plot, item, band=0.2, dots=2.2)
        edge = _limits(plot, [item, *others], math.inf if has_own_axis else top)
        _draw_arrow(plot, item, [max(values) for values in item.seeds], edge)
        crosses = [(x, min(value, edge)) for x, value in item.lost]
        plot.plot([x for x, _ in crosses], [y for _, y in crosses], "x", ms=4, mew=1, color=canvas.INK, clip_on=False)
        plot.locator_params(nbins=4)
        title = f"{item.name} (own axis)" if has_own_axis else item.name
        chart.text(0, 1, title, va="top", ha="left", color=item.mark.colour)
        return canvas.to_svg(chart)


def _evaluations(curve: Curve) -> dict[float, tuple[float, float]]:
    """Loss and seconds by step."""
    return {row[0]: (row[2], row[3] or 0.0) for row in curve if row[2] is not None and math.isfinite(row[2])}


def _shared(found: Sequence[Mapping[float, Any]]) -> list[float]:
    return sorted(set.intersection(*map(set, found))) if found else []


def _draw_path(plot, item: Path, band: float, dots: float = 0) -> None:
    colour = item.mark.colour
    lows, highs = [min(values) for values in item.seeds], [max(values) for values in item.seeds]
    plot.fill_between(item.x, lows, highs, color=colour, alpha=band, lw=0)
    plot.plot(item.x, item.mean, color=colour, ls=(0, (4, 2)) if item.mark is REFERENCE else "-")
    if dots:
        xs = [x for x, values in zip(item.x, item.seeds, strict=True) for _ in values]
        plot.plot(xs, [v for values in item.seeds for v in values], "o", ms=dots, color=colour, mew=0, alpha=0.75)


def _draw_arrow(plot, item: Path, values: Sequence[float], top: float) -> None:
    """One arrow a path: at its end if that is above the chart, otherwise at the first that is."""
    out = [x for x, value in zip(item.x, values, strict=True) if value > top]
    if out:
        arrow(plot, out[-1] if values[-1] > top else out[0], item.mark.colour)


def _limits(plot, paths: Sequence[Path], top: float, left: float = 0.0) -> float:
    """Show what the paths span below `top`, lost seeds not counted; returns the upper edge."""
    values = [value for item in paths for seeds in item.seeds for value in seeds if value <= top]
    rim = 0.06 * (max(values) - min(values)) or 0.1
    plot.set_ylim(min(values) - rim, max(values) + rim)
    last = max(item.x[-1] for item in paths)
    plot.set_xlim(left, last + 0.02 * (last - left) or 1)
    plot.xaxis.set_major_formatter(lambda value, _: short(value))
    plot.locator_params(axis="x", nbins=5, integer=last > 4)
    return max(values) + rim


def _label(item: Path, top: float) -> str:
    return f"{item.name}: {short(item.mean[-1])}" if item.mean[-1] > top else item.name


def _draw_names(plot, paths: Sequence[Path], labels: Sequence[str]) -> None:
    frame = plot.get_window_extent()
    ends = [map(float, plot.transData.transform((item.x[-1], item.mean[-1]))) for item in paths]
    ends = [(x, min(y, float(frame.y1))) for x, y in ends]
    x = float(frame.x1) + 8
    heights = apart([y for _, y in ends], canvas.FONT + 1, float(frame.y0), float(frame.y1))
    for item, label, (end, start), height in zip(paths, labels, ends, heights, strict=True):
        colour = item.mark.colour
        plot.plot([end, x - 2], [start, height], color=colour, lw=0.6, transform=None, clip_on=False)
        if label == item.name:
            plot.plot(end, start, item.mark.shape, ms=5, color=colour, transform=None, clip_on=False)
        plot.text(x, height, label, va="center_baseline", size=canvas.FONT - 1, color=colour, transform=None)
