"""Quality against cost: a mark for a method's mean, a dot a seed, a dashed line along the best for their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.studies.comparison.report import canvas
from qpeft.studies.comparison.report.labels import Box, beside
from qpeft.studies.comparison.report.marks import Mark


@dataclass(frozen=True)
class Point:
    """A method in the plane: `x` its cost, `y` its mean, `seeds` the values it is the mean of."""

    name: str
    mark: Mark
    x: float
    y: float
    seeds: tuple[float, ...]


def draw(points: Sequence[Point], name: str, x_title: str, y_title: str, lower_is_better: bool) -> str:
    """The chart as SVG; x is logarithmic. `points` is not empty and every x is positive."""
    with canvas.style(name):
        chart = canvas.figure(max(300, 180 + 11 * len(points)))
        plot = canvas.axes(chart)
        plot.set_xscale("log")
        for point in points:
            _draw_point(plot, point)
        _margins(plot, points)
        _draw_front(plot, points, lower_is_better)
        _draw_names(plot, points)
        canvas.short_ticks(plot)
        canvas.titles(chart, plot, x_title, y_title)
        return canvas.to_svg(chart)


def front(points: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """The points that no other equals at a lower or equal cost, by rising cost."""
    best, kept = None, []
    for point in sorted(points, key=lambda item: (item.x, item.y if lower_is_better else -item.y)):
        if best is None or (point.y < best if lower_is_better else point.y > best):
            kept.append(point)
            best = point.y
    return kept


def _draw_point(plot, point: Point) -> None:
    mark = point.mark
    plot.plot([point.x] * len(point.seeds), point.seeds, "o", ms=2.4, color=mark.colour, alpha=0.6, mew=0)
    plot.plot(point.x, point.y, mark.shape, ms=7.5, color=mark.colour, mec=canvas.PAPER, mew=1)


def _margins(plot, points: Sequence[Point]) -> None:
    costs = [point.x for point in points]
    room = max(max(costs) / min(costs), 10.0) ** 0.09
    plot.set_xlim(min(costs) / room, max(costs) * room)
    values = [value for point in points for value in (*point.seeds, point.y)]
    rim = 0.08 * (max(values) - min(values)) or 0.01 * abs(values[0]) or 1.0
    plot.set_ylim(min(values) - rim, max(values) + rim)


def _draw_front(plot, points: Sequence[Point], lower_is_better: bool) -> None:
    kept = front(points, lower_is_better)
    xs = [point.x for point in kept] + [plot.get_xlim()[1]]
    ys = [point.y for point in kept] + [kept[-1].y]
    plot.step(xs, ys, where="post", color=canvas.MUTED, lw=1, ls=(0, (3, 3)), zorder=1)


def _draw_names(plot, points: Sequence[Point]) -> None:
    where = [tuple(plot.transData.transform((point.x, point.y))) for point in points]
    frame = plot.get_window_extent()
    bounds = Box(frame.x0, frame.y0, frame.x1 + 8, frame.y1 + 6)
    size = canvas.FONT - 1
    for point, spot, place in zip(points, where, beside(where, [p.name for p in points], bounds, size), strict=True):
        if place.leader:
            plot.plot(*zip(spot, place[:2], strict=True), color=canvas.MUTED, lw=0.6, transform=None, zorder=1)
        colour = point.mark.colour
        plot.text(*place[:2], point.name, ha=place.align, va="center_baseline", size=size, color=colour, transform=None)
