"""The charts of a report: SVG by matplotlib with one style sheet, independent of the user's
settings.

A chart is as wide as a phone, so that its text stays readable there; wider pages set two side by
side. Labels are next to what they name. A kind of method has the same color and marker everywhere.
Equal data give equal bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup, escape
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from qpeft_lab.compare.stats import BETTER, WORSE, Difference
from qpeft_lab.compare.study import is_comparable
from qpeft_lab.compare.summary import Result, Summary

WIDTH = 344  # pixels
INK = "#1c1d20"
MUTED = "#5d6067"
FAINT = "#d9d8d2"
_TITLE = "#3f4248"
_MOST_ROWS = 24  # of the chart of differences
_MOST_NAMED = 12  # of the chart of sizes
_LETTER = 5.4  # pixels: the width of a letter of a label
_LINE = 12  # pixels: the height of a label
AN_ARROW = "An arrow: the interval goes on."


class Kind(NamedTuple):
    """A kind of method. `key` is also its CSS class."""

    key: str
    title: str
    sign: str
    marker: str  # matplotlib's name of the sign
    color: str


REFERENCE = Kind("reference", "reference", "◆", "D", INK)
QUANTUM = Kind("quantum", "quantum-generated", "●", "o", "#1559b7")
CLASSICAL = Kind("classical", "classical", "■", "s", "#7a7d84")
CONTROL = Kind("control", "control", "▲", "^", "#a34a00")
BASE = Kind("base", "no adapter", "✕", "X", MUTED)


def kind_of(result: Result, summary: Summary) -> Kind:
    """The kind of a method in its study."""
    if result.key == summary.study.reference:
        return REFERENCE
    if result.method.role == "control":
        return CONTROL
    if not result.method.rates:
        return BASE
    return QUANTUM if result.method.kind == "quantum" else CLASSICAL


class Chart(NamedTuple):
    """A chart: `title` for readers who cannot see it, the SVG document, and a caption."""

    title: str
    svg: str
    caption: str

    @property
    def image(self) -> Markup:
        """An `<img>` element that contains the chart."""
        data = quote(self.svg, safe=" /;=,'<>")  # smaller than base64
        return Markup(
            f'<img class="chart" alt="{escape(self.title)}" src="data:image/svg+xml,{data}">'
        )


@contextmanager
def drawing(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of WIDTH by `height` pixels with one pair of axes. The style sheet applies inside
    the block.
    """
    sheet = files("qpeft_lab.compare") / "templates" / "style.mplstyle"
    with styles.context(["default", str(sheet)]), warnings.catch_warnings():
        # the reader's browser has the glyph
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        yield figure, figure.add_subplot()


def as_svg(figure: Figure) -> str:
    """The figure as SVG; inside `drawing`. Coordinates are rounded, and no metadata are stored."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    return rounded(buffer.getvalue())


def rounded(svg: str) -> str:
    """The picture with two digits behind the point in its tags, on one line, and without rotations
    by nothing.
    """
    line = re.sub(r' transform="rotate\(-0 [^"]*"', "", " ".join(svg.split()))
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), line)


def differences(summary: Summary) -> Chart | None:
    """Every difference of the table with its 95 % interval, a line each. A filled mark is a
    verdict, a hollow none.
    """
    groups = _groups(summary)
    n_rows = sum(map(len, groups.values()))
    if not n_rows:
        return None
    factor = summary.metric.factor
    drawn = [row.difference for rows in groups.values() for row in rows]
    # of the means: a single wide interval would make all others unreadable
    limits = _limits([0.0, *(factor * difference.mean for difference in drawn)])
    with drawing(56 + 30 * n_rows + 24 * len(groups)) as (figure, axes):
        style = {
            "transform": axes.get_yaxis_transform(),
            "va": "center",
            "size": 9,
        }
        box = {"fc": "white", "ec": "none", "pad": 0.8}
        axes.set_xlim(*limits)
        line = 0.0
        for title, rows in groups.items():
            axes.text(0, line, title, weight="bold", **style)
            line += 0.8
            for row in rows:
                axes.text(0, line, row.result.label, bbox=box, **style)
                _draw_difference(axes, line + 0.42, row, factor, kind_of(row.result, summary))
                line += 1
        axes.axvline(0, color=INK, lw=1, zorder=0.5)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(line, -0.5)
        axes.locator_params(axis="x", nbins=5)
        sides = ("better", "worse") if summary.study.lower_is_better else ("worse", "better")
        axes.set_xlabel(f"← {sides[0]} | {summary.metric.difference} | {sides[1]} →")
        caption = (
            "Method minus what it is compared with, with 95 % intervals. Filled: a verdict; hollow:"
            " none. The table has those that are not drawn."
        )
        if any(_is_cut(difference, factor, limits) for difference in drawn):
            caption += f" {AN_ARROW}"
        return Chart(f"Differences in {summary.metric.title.lower()}", as_svg(figure), caption)


class ComparedResult(NamedTuple):
    """A row of the chart of differences."""

    result: Result
    difference: Difference


def _draw_difference(
    axes: Axes, height: float, row: ComparedResult, factor: float, kind: Kind
) -> None:
    """The mean as a mark, filled for a verdict, and the interval, in the unit of the report."""
    difference = row.difference
    if difference.low is not None and difference.high is not None:
        draw_interval(
            axes,
            height,
            factor * difference.low,
            factor * difference.high,
            kind.color,
        )
    face = kind.color if difference.verdict in (BETTER, WORSE) else "white"
    axes.plot(
        factor * difference.mean, height, marker=kind.marker, mfc=face, color=kind.color, zorder=3
    )


def _is_cut(difference: Difference, factor: float, limits: tuple[float, float]) -> bool:
    """Whether its interval ends outside the axes."""
    if difference.low is None or difference.high is None:
        return False
    return factor * difference.low < limits[0] or factor * difference.high > limits[1]


def draw_interval(axes: Axes, height: float, low: float, high: float, color: str) -> None:
    """A line from `low` to `high`. An end outside the axes, whose limits are set, is an arrow."""
    left, right = axes.get_xlim()
    start = max(low, left)
    end = min(high, right)
    axes.plot([start, end], [height, height], color=color, lw=1.5)
    for place, is_cut, arrow in ((start, low < left, "<"), (end, high > right, ">")):
        axes.plot(
            place,
            height,
            marker=arrow if is_cut else "|",
            color=color,
            clip_on=False,
        )


def _groups(summary: Summary) -> dict[str, list[ComparedResult]]:
    """The trained methods with their differences, by what they are compared with; the best first."""
    shown = [
        ComparedResult(result, result.difference)
        for result in summary.by_quality
        if result.difference is not None
        and result.method.rates
        and not _is_hopeless(result, summary)
        and is_comparable(summary.ratio(result))
    ]
    groups: dict[str, list[ComparedResult]] = {}
    for row in shown[:_MOST_ROWS]:
        groups.setdefault(f"minus {summary.compared_with(row.result)}", []).append(row)
    return groups


def sizes(summary: Summary) -> Chart | None:
    """Quality against trainable parameters, with labels; a method at the size of another is drawn
    at that.
    """
    trained = [
        result
        for result in summary.by_quality
        if result.metric and result.method.rates and result.method.trainable
    ]
    shown = [result for result in trained if not _is_hopeless(result, summary)] or trained
    if len(trained) < 2:
        return None
    factor = summary.metric.factor
    better = "lower" if summary.study.lower_is_better else "higher"
    points = {
        result.key: Point(_size(result, summary), factor * result.metric.mean)
        for result in shown
        if result.metric
    }
    front = _front(points, lower_is_better=summary.study.lower_is_better)
    named = list(dict.fromkeys([summary.study.reference, *front, *points]))[:_MOST_NAMED]
    with drawing(300) as (figure, axes):
        axes.set_xscale("log")
        for result in reversed(shown):  # the best on top
            kind = kind_of(result, summary)
            axes.plot(
                *points[result.key],
                marker=kind.marker,
                color=kind.color if result.key in named else FAINT,
                ms=6,
            )
        axes.set_ylim(*_limits([y for _, y in points.values()]))
        xs = [x for x, _ in points.values()]
        axes.set_xlim(min(xs) / 1.6, max(xs) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter("")
        _name_points(
            figure, axes, {summary[key].label: points[key] for key in named if key in points}
        )
        axes.set_xlabel("Trainable parameters")
        axes.set_title(
            f"{summary.metric.full_title}, {better} is better", fontsize="medium", color=_TITLE
        )
        moved = [result for result in shown if _size(result, summary) != result.method.trainable]
        remarks = {
            "Pale: without a label.": len(named) < len(points),
            "Not drawn: worse than the base.": len(shown) < len(trained),
            "Methods at the size of another are at that.": bool(moved),
        }
        caption = " ".join(text for text, holds in remarks.items() if holds)
        return Chart(
            f"{summary.metric.title} against trainable parameters", as_svg(figure), caption
        )


class Point(NamedTuple):
    """A method in the chart of sizes."""

    size: int
    quality: float


def _front(points: Mapping[str, Point], *, lower_is_better: bool) -> list[str]:
    """The keys of the points with which no other of at most that size is as good; by size."""
    sign = 1 if lower_is_better else -1
    by_size = sorted(points, key=lambda key: (points[key].size, sign * points[key].quality))
    front: list[str] = []
    for key in by_size:
        if not front or sign * points[key].quality < sign * points[front[-1]].quality:
            front.append(key)
    return front


def curves(summary: Summary) -> Chart | None:
    """Validation loss against steps at the chosen learning rate, a line for each method, with its
    label at the end.
    """
    ordered = [
        result
        for result in summary.ordered
        if result.method.rates and result.method.role != "equal_budget"
    ]
    shown = [result for result in ordered if not _is_hopeless(result, summary)]
    mean_curves = {result.key: _mean_curve(result) for result in shown}
    lines = {key: line for key, line in mean_curves.items() if len(line) > 1}
    if not lines:
        return None
    ends = {key: line.iloc[-1] for key, line in lines.items()}
    first = [key for key in (summary.study.reference, *lines) if key in lines]
    named = list(dict.fromkeys(first))[:_MOST_NAMED]
    with drawing(300) as (figure, axes):
        for key, line in reversed(lines.items()):
            color = kind_of(summary[key], summary).color if key in named else FAINT
            axes.plot(line, color=color, lw=2.2 if key == summary.study.reference else 1.2)
        low, high = _limits([lines[named[0]].iloc[0], *ends.values()])  # prefixes start far above
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(line.index[-1] for line in lines.values()))
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("Steps")
        axes.set_title("Validation loss, mean over seeds", fontsize="medium", color=_TITLE)
        figure.draw_without_rendering()
        room = (high - low) * _LINE / axes.get_window_extent().height
        places = _apart({key: ends[key] for key in named}, room, highest=high - room / 2)
        for key, place in places.items():
            color = kind_of(summary[key], summary).color
            _name_end(
                axes,
                summary[key].label,
                end=ends[key],
                place=place,
                color=color,
            )
        remarks = {
            "The learning rates are those that tuning chose.": any(
                result.trials for result in shown
            ),
            "Pale: without a label.": len(named) < len(lines),
        }
        caption = " ".join(text for text, holds in remarks.items() if holds)
        return Chart("Validation loss against steps", as_svg(figure), caption)


def _apart(ends: Mapping[str, float], room: float, *, highest: float) -> dict[str, float]:
    """The place of each label, near its end: `room` apart, and none above `highest`."""
    places: dict[str, float] = {}
    place = -math.inf
    for key in sorted(ends, key=ends.__getitem__):  # from below
        place = max(place + room, ends[key])
        places[key] = place
    for key in reversed(places):  # from above, as far as they are too high
        places[key] = min(places[key], highest)
        highest = places[key] - room
    return places


def _name_end(axes: Axes, label: str, *, end: float, place: float, color: str) -> None:
    """A label right of the axes at `place`, with a line to the `end` of the curve."""
    line = {
        "arrowstyle": "-",
        "color": color,
        "lw": 0.5,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate(
        label,
        xy=(1, end),
        xytext=(1.05, place),
        xycoords=axes.get_yaxis_transform(),
        arrowprops={**line, "relpos": (0, 0.5)},
        size=9,
        va="center",
        color=color,
        annotation_clip=False,
    )


def _mean_curve(result: Result) -> pd.Series:
    """The validation loss by step, over the seeds that succeeded."""
    losses = {
        seed: {step: loss for step, loss, _ in row["curve"]}
        for seed, row in result.successes.items()
    }
    return pd.DataFrame(losses).mean(axis=1)


def _is_hopeless(result: Result, summary: Summary) -> bool:
    """Whether the method is worse than the base without an adapter: axes end before it."""
    untrained = [other.metric for other in summary.results if not other.method.rates]
    base = next((metric.mean for metric in untrained if metric is not None), None)
    if base is None or result.metric is None:
        return False
    mean = result.metric.mean
    return mean > base if summary.study.lower_is_better else mean < base


def _size(result: Result, summary: Summary) -> int:
    """Trainable parameters; of a comparable method at the size of another those of that one."""
    of = result.method.at_size_of
    if of and is_comparable(summary.ratio(result)):
        return summary[of].method.trainable
    return result.method.trainable


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis at the values, with a margin."""
    margin = 0.12 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1
    return min(values) - margin, max(values) + margin


def _name_points(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Labels right, left, above or below of points, where there is room; without room there is
    none.
    """
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    marks = [axes.transData.transform(point) for point in points.values()]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    for label, (x, y) in zip(points, marks, strict=True):
        wide = _LETTER * len(label)
        places = [
            (7, -_LINE / 2),
            (-7 - wide, -_LINE / 2),
            (-wide / 2, 6),
            (-wide / 2, -_LINE - 6),
        ]
        for left, low in ((x + dx, y + dy) for dx, dy in (*places, (5, 5), (5, -_LINE - 5))):
            right = left + wide
            top = low + _LINE
            is_inside = box.x0 <= left and right <= box.x1 and box.y0 <= low and top <= box.y1
            if is_inside and not any(
                left < x1 and x0 < right and low < y1 and y0 < top for x0, y0, x1, y1 in taken
            ):
                axes.annotate(
                    label, (left, low + 2), xycoords="figure pixels", size=9, annotation_clip=False
                )
                taken.append((left, low, right, top))
                break
