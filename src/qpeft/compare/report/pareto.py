"""Quality against cost: a mark for a method's mean, a dot a seed, a dashed line along the best for their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from qpeft.compare.report import canvas, numbers
from qpeft.compare.report.labels import Box, beside
from qpeft.compare.report.marks import Mark
from qpeft.compare.report.window import RULE, arrow, fences

_STRIP = 30  # pixels at the edge for what lies beyond it
_KEY_LINE = 15
_KEY_LETTERS = 25  # two columns of the key have room for names of this length


@dataclass(frozen=True)
class Point:
    """A method in the plane: `x` its cost, `y` its mean, `seeds` the values it is the mean of.

    A `minor` one has a number in the chart, and its name in the key beneath.
    """

    name: str
    mark: Mark
    x: float
    y: float
    seeds: tuple[float, ...]
    minor: bool = False


@dataclass(frozen=True)
class _Range:
    """What the y axis shows, the best always; `worst` is the edge that worse values may lie beyond."""

    best: float
    worst: float

    @property
    def lower_is_better(self) -> bool:
        return self.best < self.worst

    def is_beyond(self, y: float) -> bool:
        return y > self.worst if self.lower_is_better else y < self.worst


def draw(points: Sequence[Point], name: str, x_title: str, y_title: str, lower_is_better: bool) -> str:
    """The chart as SVG; x is logarithmic. `points` is not empty and every x is positive."""
    key = [point.name for point in points if point.minor]
    n_columns = 2 if max(map(len, key), default=0) <= _KEY_LETTERS else 1
    n_lines = -(-len(key) // n_columns)
    with canvas.style(name):
        body = max(300, 250 + 7 * (len(points) - len(key)))
        below = 36 + (n_lines and 10 + _KEY_LINE * n_lines)
        chart = canvas.figure(body + below - 36)
        plot = canvas.axes(chart, bottom=below)
        plot.set_xscale("log")
        shown = _range(points, lower_is_better)
        _margins(plot, points, shown)
        spots = [_draw_point(plot, point, shown) for point in points]
        _draw_front(plot, points, lower_is_better)
        _draw_names(plot, points, spots, shown)
        _draw_key(chart, key, n_columns, n_lines)
        canvas.short_ticks(plot)
        canvas.titles(chart, plot, x_title, y_title)
        return canvas.to_svg(chart)


def beyond(points: Sequence[Point], lower_is_better: bool) -> str:
    """The caption: what lies beyond the chart, and where."""
    shown = _range(points, lower_is_better)
    out = [f"{point.name} {numbers.number(point.y)}" for point in points if shown.is_beyond(point.y)]
    out += [
        f"a seed of {point.name} {numbers.number(seed)}"
        for point in points
        for seed in point.seeds
        if shown.is_beyond(seed) and not shown.is_beyond(point.y)
    ]
    return f"Beyond the chart, at the arrows: {', '.join(out)}. {RULE}" if out else ""


def front(points: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """The points that no other equals at a lower or equal cost, by rising cost."""
    best, kept = None, []
    for point in sorted(points, key=lambda item: (item.x, item.y if lower_is_better else -item.y)):
        if best is None or (point.y < best if lower_is_better else point.y > best):
            kept.append(point)
            best = point.y
    return kept


def _range(points: Sequence[Point], lower_is_better: bool) -> _Range:
    """From the best value to the worst that no fence excludes, with a rim."""
    low, high = fences([point.y for point in points])
    values = [value for point in points for value in (*point.seeds, point.y)]
    if lower_is_better:
        best, worst = min(values), max(value for value in values if value <= high)
    else:
        best, worst = max(values), min(value for value in values if value >= low)
    rim = 0.08 * abs(worst - best) or 0.01 * abs(best) or 1.0
    return _Range(best - rim, worst + rim) if lower_is_better else _Range(best + rim, worst - rim)


def _margins(plot, points: Sequence[Point], shown: _Range) -> None:
    costs = [point.x for point in points]
    room = max(max(costs) / min(costs), 10.0) ** 0.09
    plot.set_xlim(min(costs) / room, max(costs) * room)
    edge = shown.worst
    if any(shown.is_beyond(point.y) for point in points):
        edge += (shown.worst - shown.best) * _STRIP / (plot.get_window_extent().height - _STRIP)
    plot.set_ylim(min(shown.best, edge), max(shown.best, edge))


def _draw_point(plot, point: Point, shown: _Range) -> tuple[float, float]:
    """Returns where the mark stands, in pixels; hollow in the strip at the edge if the mean lies beyond it."""
    mark, size = point.mark, 5.5 if point.minor else 7.5
    plot.plot([point.x] * len(point.seeds), point.seeds, "o", ms=2.4, color=mark.colour, alpha=0.6, mew=0)
    is_out, x, y = shown.is_beyond(point.y), *map(float, plot.transData.transform((point.x, point.y)))
    if is_out or any(map(shown.is_beyond, point.seeds)):
        arrow(plot, point.x, mark.colour, up=shown.lower_is_better)
    if is_out:
        frame = plot.get_window_extent()
        y = float(frame.y1 - _STRIP / 2 if shown.lower_is_better else frame.y0 + _STRIP / 2)
    face, edge = (canvas.PAPER, mark.colour) if is_out else (mark.colour, canvas.PAPER)
    plot.plot(x, y, mark.shape, ms=size, mfc=face, mec=edge, mew=1, transform=None)
    return x, y


def _draw_front(plot, points: Sequence[Point], lower_is_better: bool) -> None:
    kept = front(points, lower_is_better)
    xs = [point.x for point in kept] + [plot.get_xlim()[1]]
    ys = [point.y for point in kept] + [kept[-1].y]
    plot.step(xs, ys, where="post", color=canvas.MUTED, lw=1, ls=(0, (3, 3)), zorder=1)


def _draw_names(plot, points: Sequence[Point], spots: Sequence[tuple[float, float]], shown: _Range) -> None:
    frame = plot.get_window_extent()
    bounds = Box(frame.x0, frame.y0, frame.x1 + 8, frame.y1 + 6)
    size, numbered = canvas.FONT - 1, count(1)
    texts = [str(next(numbered)) if point.minor else point.name for point in points]
    texts = [
        f"{text}: {point.y:.3g}" if shown.is_beyond(point.y) else text
        for text, point in zip(texts, points, strict=True)
    ]
    for point, spot, text, place in zip(points, spots, texts, beside(spots, texts, bounds, size), strict=True):
        if place.leader:
            plot.plot(*zip(spot, place[:2], strict=True), color=canvas.MUTED, lw=0.6, transform=None, zorder=1)
        colour = point.mark.colour
        plot.text(*place[:2], text, ha=place.align, va="center_baseline", size=size, color=colour, transform=None)


def _draw_key(chart, names: Sequence[str], n_columns: int, n_lines: int) -> None:
    """The numbered names, down one column and then the other."""
    width, height = (72 * inches for inches in chart.get_size_inches())
    for index, name in enumerate(names):
        column, line = divmod(index, n_lines)
        x, y = column * width / n_columns, (n_lines - line - 0.5) * _KEY_LINE
        options = {"size": canvas.FONT - 1, "va": "center_baseline"}
        chart.text((x + 16) / width, y / height, f"{index + 1}", ha="right", color=canvas.INK, **options)
        chart.text((x + 22) / width, y / height, name, color=canvas.MUTED, **options)
