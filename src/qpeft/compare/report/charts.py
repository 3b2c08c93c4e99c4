"""The charts of a study. Methods have the same color and marker in all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

from qpeft.compare.analysis.front import front_of
from qpeft.compare.analysis.statistics import LEVEL
from qpeft.compare.report.format import decimal, kind_of
from qpeft.compare.report.plotting import FAINT, INK, MUTED, Chart, drawing, label_axes, legend_below, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.analysis.types import MethodSummary, Summary
    from qpeft.compare.rows import Place, Row

_FILLS = ("full", "none", "left")
_MOST_NAMED = 24  # methods that a legend can tell apart
_LAYERS = {"effective_rank": "Effective rank of Δy", "cka": "CKA to the base's hidden states"}


def every(summary: Summary) -> dict[str, list[Chart]]:
    """All charts, by the place where the report shows them."""
    reference = summary.study.reference
    differences = [(m, m.difference) for m in summary.ordered if m.difference is not None and m.lr is not None]
    ratio = f"time of a training step, \u00d7 {reference}"
    return {
        "forest": _intervals("differences", differences, f"minus that of {reference}", summary),
        "answer": [
            *_quality_by("trainable", "trainable parameters", lambda method: method.trainable, summary),
            *loss_curves(summary),
        ],
        "control_forest": control_differences(summary),
        "convergence": convergence(summary),
        "each_method": each_method(summary),
        "layers": layers(summary),
        "ranks": pruned_ranks(summary),
        "costs": [
            *_quality_by("stored", "stored bytes", lambda method: method.bytes_stored, summary),
            *_quality_by("deployed", "deployed parameters", lambda method: method.deployed, summary),
            *_quality_by("step-time", ratio, lambda method: method.cost.step_ratio, summary),
        ],
    }


def control_differences(summary: Summary) -> list[Chart]:
    """Every control minus its method."""
    found = [(m, m.difference_to_target) for m in summary.ordered if m.difference_to_target is not None]
    return _intervals("controls", found, "of the control minus that of its method", summary)


def loss_curves(summary: Summary) -> list[Chart]:
    """Validation loss against steps, with the losses at shares of the reference's gain."""
    frames = _main_losses(summary)
    return [_loss_curves("convergence-steps", "Steps", frames, summary, lines=summary.targets)] if frames else []


def convergence(summary: Summary) -> list[Chart]:
    """Validation loss against seconds, and the second half of the steps enlarged."""
    frames = _main_losses(summary)
    if not frames:
        return []
    seconds = {
        key: frame.set_axis(_evaluations(summary[key], summary, 3, True).loc[frame.index].mean(axis=1))
        for key, frame in frames.items()
    }
    half = max(frame.index[-1] for frame in frames.values()) / 2
    late = {key: frame.loc[half:] for key, frame in frames.items() if len(frame.loc[half:]) > 1}
    ends = [_loss_curves("convergence-end", "Second half of the steps", late, summary, math.inf)] if late else []
    return [*ends, _loss_curves("convergence-seconds", "Seconds", seconds, summary)]


def each_method(summary: Summary) -> list[Chart]:
    """A small chart for each method: a line for each seed, with the means of the other methods in grey."""
    frames = {m.key: frame for m in summary.ordered if len(frame := _losses(m, summary)) > 1}
    return [_seeds(summary[key], frames, summary) for key in frames]


def layers(summary: Summary) -> list[Chart]:
    """Measurements of capacity by layer, means over seeds."""
    charts = []
    for name, title in _LAYERS.items():
        found = {m.key: means for m in summary.methods if m.role == "main" and (means := _by_layer(m, name, summary))}
        if not found:
            continue
        with drawing(240, legend=len(found)) as (chart, axes):
            looks = _looks(summary)
            for key, means in found.items():
                axes.plot(list(means), list(means.values()), label=key, **looks[key])
            axes.locator_params(axis="x", integer=True)
            label_axes(axes, "Layer", title)
            legend_below(chart, axes)
            charts.append(save(chart, f"layers-{name}".replace("_", "-"), f"{title} by layer", "Means over seeds."))
    return charts


def pruned_ranks(summary: Summary) -> list[Chart]:
    """The ranks that are left by each method that prunes ranks, over modules and seeds."""
    charts = []
    for method in (method for method in summary.study.methods if method.prunes_ranks):
        modules = [module for row in _successes(method.key, summary) for module in row.capacity.modules]
        ranks = [rank for module in modules if (rank := _rank(module)) is not None]
        if ranks:
            charts.append(_histogram(method.key, ranks, len(modules)))
    return charts


def _looks(summary: Summary) -> dict[str, dict[str, Any]]:
    """Color, marker and line style of every method; where colors repeat, markers are hollow. Inside `drawing`."""
    from matplotlib import rcParams

    colors = rcParams["axes.prop_cycle"].by_key()["color"]
    kinds = {method.key: kind_of(method, summary) for method in summary.methods}
    return {
        key: {
            "color": colors[index % len(colors)],
            "marker": kind.marker,
            "linestyle": kind.line,
            "fillstyle": _FILLS[index // len(colors) % len(_FILLS)],
        }
        for index, (key, kind) in enumerate(kinds.items())
    }


def _intervals(
    name: str, found: Sequence[tuple[MethodSummary, Difference]], whose: str, summary: Summary
) -> list[Chart]:
    """Differences with their 95 % intervals, a line each. A filled mark is a verdict, a hollow one is none."""
    if not found:
        return []
    title, factor = f"{summary.metric.title} {whose}", summary.metric.factor
    with drawing(70 + 22 * len(found)) as (chart, axes):
        looks = _looks(summary)
        for line, (method, difference) in enumerate(found):
            look = {name: looks[method.key][name] for name in ("color", "marker")}
            mean, low, high = factor * difference.mean, difference.low, difference.high
            reach = None if low is None or high is None else [[mean - factor * low], [factor * high - mean]]
            face = look["color"] if difference.verdict in ("better", "worse") else "white"
            axes.errorbar(mean, line, xerr=reach, mfc=face, capsize=2, **look)
        seeds = [(x, line) for line, (m, d) in enumerate(found) for x in _paired(m, summary[d.to], factor)]
        axes.plot(*zip(*seeds, strict=True), ".", ms=3, color=INK, alpha=0.5, zorder=3)
        axes.axvline(0, color=INK, lw=1)
        axes.set_yticks(range(len(found)), [("↳ " if m.against else "") + m.key for m, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        sides = ("better", "worse") if summary.lower_is_better else ("worse", "better")
        label_axes(axes, f"← {sides[0]} | {summary.metric.unit} | {sides[1]} →", "")
        return [save(chart, name, f"{title}, with 95 % intervals", f"{title}.")]


def _paired(method: MethodSummary, other: MethodSummary, factor: float) -> list[float]:
    """The differences of the seeds that both have."""
    if method.metric is None or other.metric is None:
        return []
    values, others = method.metric.values, other.metric.values
    return [factor * (values[seed] - others[seed]) for seed in sorted(values.keys() & others.keys())]


def _quality_by(
    name: str, x_title: str, cost: Callable[[MethodSummary], float | None], summary: Summary
) -> list[Chart]:
    """A mark with its 95 % interval for each method's mean, a dot for each seed, a dashed line along the Pareto front.

    Of many methods only those on the front are named.
    """
    points = {m.key: (float(x), m.metric) for m in summary.methods if m.metric is not None and (x := cost(m))}
    if not points:
        return []
    factor, better = summary.metric.factor, "lower" if summary.lower_is_better else "higher"
    untrained = [m.metric.mean for m in summary.methods if m.trainable == 0 and m.lr is None and m.metric]
    best = front_of(summary, lambda method: cost(method) or None)
    front = {one.method.key: (one.size, factor * points[one.method.key][1].mean) for one in best}
    named = front if len(points) > _MOST_NAMED else points
    with drawing(260, legend=len(named)) as (chart, axes):
        looks = _looks(summary)
        axes.set_xscale("log")
        seeds = [(x, factor * value) for x, stats in points.values() for value in stats.values.values()]
        axes.plot(*zip(*seeds, strict=True), ".", ms=3, color=INK, alpha=0.5)
        for key, (x, stats) in points.items():
            mean, reach = factor * stats.mean, factor * (stats.half_width or 0.0)
            look = looks[key] if key in named else {**looks[key], "color": FAINT}
            label = key if key in named else None
            axes.errorbar(x, mean, reach, label=label, capsize=2, **{**look, "linestyle": "", "markersize": 7})
        if front:
            axes.step(*zip(*front.values(), strict=True), where="post", color=MUTED, lw=1, ls="--", zorder=1)
        outside = _end_at(axes, factor * untrained[0] if untrained else None, summary.lower_is_better)
        _short_ticks(axes)
        label_axes(axes, x_title.capitalize(), f"{summary.metric.title} ({summary.metric.unit}), {better} is better")
        legend_below(chart, axes)
        worse = [f"{key} ({decimal(factor * s.mean)})" for key, (_, s) in points.items() if outside(factor * s.mean)]
        caption = f"Worse than the untrained base, outside the chart: {', '.join(worse)}." if worse else ""
        if len(named) < len(points):
            caption = f"Grey: the {len(points) - len(named)} methods that are not on the dashed line. {caption}".strip()
        return [save(chart, name, f"{summary.metric.title} against {x_title}", caption)]


def _end_at(axes: Axes, limit: float | None, lower_is_better: bool) -> Callable[[float], bool]:
    """End the y axis at `limit` where values lie on its worse side; returns which values are outside then."""
    low, high = axes.get_ylim()
    if limit is None or not low < limit < high:
        return lambda value: False
    axes.set_ylim((low, limit) if lower_is_better else (limit, high))
    return (lambda value: value > limit) if lower_is_better else (lambda value: value < limit)


def _short_ticks(axes: Axes) -> None:
    """Label the x axis with 1k, 10k, 1M."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    is_log = axes.get_xscale() == "log" and high / low > 5
    subs = (1.0,) if is_log and high / low > 100 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs) if is_log else MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _main_losses(summary: Summary) -> dict[str, pd.DataFrame]:
    """The validation losses by key: of main methods, or of all where the main one is the reference of others only."""
    frames = {m.key: frame for m in summary.by_quality if len(frame := _losses(m, summary)) > 1}
    main = {key: frame for key, frame in frames.items() if summary[key].role == "main"}
    return main if len(main) > 1 else frames


def _losses(method: MethodSummary, summary: Summary, succeeded: bool = True) -> pd.DataFrame:
    """Validation losses: index step, a column per seed; only the steps that all these seeds evaluated."""
    return _evaluations(method, summary, 2, succeeded)


def _evaluations(method: MethodSummary, summary: Summary, column: int, succeeded: bool) -> pd.DataFrame:
    """The losses (2) or seconds (3) of the seeds that succeeded, or of those that did not."""
    found = {
        seed: {entry[0]: entry[column] for entry in curve if entry[2] is not None}
        for seed, curve in summary.rows[method.key].curves.items()
        if (method.statuses[seed] == "success") == succeeded
    }
    frame = pd.DataFrame(found, dtype=float).sort_index()
    return frame.dropna() if succeeded else frame


def half_width(frame: pd.DataFrame) -> pd.Series:
    """Half the width of the 95 % t interval of the mean over the columns; 0 for one column."""
    from scipy.stats import t

    n = frame.shape[1]
    return frame.sem(axis=1).fillna(0.0) * t.ppf((1 + LEVEL) / 2, max(1, n - 1))


def _usual_start(frames: Iterable[pd.DataFrame]) -> float:
    return 1.005 * median(frame.iloc[0].mean() for frame in frames)


def _loss_curves(
    name: str,
    x_title: str,
    frames: Mapping[str, pd.DataFrame],
    summary: Summary,
    top: float | None = None,
    lines: Mapping[int, float] | None = None,
) -> Chart:
    """A line for each method's mean with the 95 % interval of it. `top`: where the axis ends; `lines`: by share."""
    with drawing(240, legend=len(frames)) as (chart, axes):
        looks = _looks(summary)
        for key, frame in frames.items():
            mean, reach = frame.mean(axis=1), half_width(frame)
            axes.fill_between(frame.index, mean - reach, mean + reach, color=looks[key]["color"], alpha=0.15, lw=0)
            axes.plot(frame.index, mean, label=key, markevery=[-1], **looks[key])
        for share, loss in (lines or {}).items():
            axes.axhline(loss, color=MUTED, lw=0.7, ls=":", zorder=1)
            axes.text(0.01, loss, f"{share} %", transform=axes.get_yaxis_transform(), va="bottom", color=MUTED, size=8)
        outside = _end_at(axes, _usual_start(frames.values()) if top is None else top, lower_is_better=True)
        _short_ticks(axes)
        label_axes(axes, x_title, f"Validation loss ({summary.loss_unit})")
        legend_below(chart, axes)
        higher = [key for key, frame in frames.items() if any(map(outside, frame.mean(axis=1)))]
        caption = f"Partly or entirely above the chart: {', '.join(higher)}." if higher else ""
        return save(chart, name, f"Validation loss against {x_title.lower()}", caption)


def _seeds(method: MethodSummary, frames: Mapping[str, pd.DataFrame], summary: Summary) -> Chart:
    frame, lost = frames[method.key], _losses(method, summary, succeeded=False)
    with drawing(150, 168) as (chart, axes):
        for other in frames.values():
            axes.plot(other.index, other.mean(axis=1), color=FAINT, lw=1)
        axes.plot(frame.index, frame, color=_looks(summary)[method.key]["color"], lw=1)
        if not lost.empty:
            axes.plot(lost.index, lost, color=INK, lw=1, ls=":", marker="x", ms=3)
        outside = _end_at(axes, max(_usual_start(frames.values()), 1.02 * frame.min().min()), lower_is_better=True)
        _short_ticks(axes)
        label_axes(axes, "", method.key)
        is_higher = any(map(outside, frame.max(axis=1))) or any(map(outside, lost.max(axis=1)))
        title = f"Validation loss of {method.key}, every seed, against steps"
        return save(chart, f"seeds-{method.key}", title, "Partly above the chart." if is_higher else "")


def _successes(key: str, summary: Summary) -> Iterable[Row]:
    return summary.rows[key].successes.values()


def _by_layer(method: MethodSummary, name: str, summary: Summary) -> dict[int, float]:
    """A measurement of the blocks by layer, means over the seeds that have it."""
    found: dict[int, list[float]] = {}
    for block in (block for row in _successes(method.key, summary) for block in row.capacity.blocks):
        if (value := getattr(block, name)) is not None:
            found.setdefault(block.layer, []).append(value)
    return {layer: fmean(values) for layer, values in sorted(found.items())}


def _rank(module: Place) -> int | None:
    """The rank of a module's ΔW: 0 where no update is left; None where it was not measured."""
    if module.weight_numerical_rank is not None:
        return module.weight_numerical_rank
    return 0 if "update_ratio" in module.model_fields_set and module.update_ratio is None else None


def _histogram(key: str, ranks: Sequence[int], n_modules: int) -> Chart:
    name, title = f"ranks-{key}", f"Ranks that {key} kept"
    counts = dict(sorted(Counter(ranks).items()))
    caption = f"{len(ranks)} adapted modules"
    if n_modules > len(ranks):
        caption += f"; the rank of {n_modules - len(ranks)} more was not measured"
    caption += ". Rank 0: every rank was pruned, so the module is unchanged." if 0 in ranks else "."
    with drawing(220) as (chart, axes):
        axes.bar_label(axes.bar(list(counts), list(counts.values()), width=0.7))
        axes.locator_params(integer=True, nbins=9)
        label_axes(axes, title, "Modules")
        return save(chart, name, title, caption)
