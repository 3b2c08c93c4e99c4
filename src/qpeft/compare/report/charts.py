"""The charts of a study. Methods have the same color and marker in all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

from qpeft import methods as registry
from qpeft.compare.report.format import decimal, loss_unit, metric_factor, metric_name, metric_unit
from qpeft.compare.report.kinds import kind_of
from qpeft.compare.report.plotting import FAINT, INK, MUTED, Chart, label_axes, legend_below, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.analysis.types import MethodSummary, Summary
    from qpeft.compare.rows import Curve, Place, Row

_LINE = 15  # pixels of a line of a legend
_FILLS = ("full", "none", "left")
_LAYERS = {"effective_rank": "Effective rank of Δy", "cka": "CKA to the base's hidden states"}


def differences(summary: Summary) -> list[Chart]:
    """Every method minus the reference; the untrained base only has a line in the table."""
    found = [(m, m.difference) for m in summary.ordered if m.difference is not None and m.lr is not None]
    return _intervals("differences", found, f"minus that of {summary.study.reference}", summary)


def control_differences(summary: Summary) -> list[Chart]:
    """Every control minus its method."""
    found = [(m, m.difference_to_target) for m in summary.ordered if m.difference_to_target is not None]
    return _intervals("controls", found, "of the control minus that of its method", summary)


def quality_by_parameters(summary: Summary) -> list[Chart]:
    """Quality against trainable parameters, and against deployed ones."""
    return [
        *_quality_by("trainable", "trainable parameters", lambda method: method.trainable, summary),
        *_quality_by("deployed", "deployed parameters", lambda method: method.deployed, summary),
    ]


def quality_by_time(summary: Summary) -> list[Chart]:
    """Quality against the time of a training step, as a multiple of the reference's."""
    title = f"time of a training step, \u00d7 {summary.study.reference}"
    return _quality_by("step-time", title, lambda method: method.cost.get("step_ratio"), summary)


def convergence(summary: Summary) -> list[Chart]:
    """Validation loss of the main methods against steps, tokens or examples, and seconds; the second half enlarged."""
    methods = [m for m in summary.ordered if m.role == "main" and len(_losses(m, summary)) > 1]
    if not methods:
        return []
    per_step, unit = _per_step(summary)
    steps = {m.key: _losses(m, summary) for m in methods}
    seen = {key: frame.set_axis(frame.index * per_step) for key, frame in steps.items()}
    seconds = {m.key: steps[m.key].set_axis(_seconds(m, summary).loc[steps[m.key].index].mean(axis=1)) for m in methods}
    half = max(frame.index[-1] for frame in steps.values()) / 2
    late = {key: frame.loc[half:] for key, frame in steps.items() if len(frame.loc[half:]) > 1}
    found = [("steps", "Steps", steps), (unit.split()[0], unit.capitalize(), seen), ("seconds", "Seconds", seconds)]
    charts = [_loss_curves(f"convergence-{name}", title, frames, summary) for name, title, frames in found]
    if late:
        charts.append(_loss_curves("convergence-end", "Second half of the steps", late, summary, math.inf))
    return charts


def each_method(summary: Summary) -> list[Chart]:
    """A small chart for each method: a line for each seed, with the means of the other methods in grey."""
    frames = {m.key: frame for m in summary.ordered if len(frame := _losses(m, summary)) > 1}
    top = _usual_start(frames.values()) if frames else 0.0
    return [_seeds(summary[key], frames, top, summary) for key in frames]


def layers(summary: Summary, rows: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Measurements of capacity by layer, means over seeds."""
    charts = []
    for figure, title in _LAYERS.items():
        found = {m.key: by_layer for m in summary.methods
                 if m.role == "main" and (by_layer := _by_layer(rows[m.key], figure))}  # fmt: skip
        if not found:
            continue
        n_seeds = max(len(values) for by_layer in found.values() for values in by_layer.values())
        with style():
            chart, axes = new_figure(240 + _legend_height(len(found)))
            looks = _looks(summary)
            for key, by_layer in found.items():
                axes.plot(list(by_layer), [fmean(values) for values in by_layer.values()], label=key, **looks[key])
            axes.locator_params(axis="x", integer=True)
            label_axes(axes, "Layer", title)
            legend_below(chart, axes)
            name = f"layers-{figure}".replace("_", "-")
            caption = "One seed." if n_seeds == 1 else "Means over seeds."
            charts.append(save(chart, name, f"{title} by layer", caption))
    return charts


def pruned_ranks(summary: Summary, rows: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """The ranks that are left by each method that prunes ranks, over modules and seeds."""
    charts = []
    for method in (method for method in summary.methods if _prunes_ranks(method)):
        modules = [module for row in rows[method.key] for module in row.capacity.modules]
        ranks = [rank for module in modules if (rank := _rank(module)) is not None]
        if ranks:
            charts.append(_histogram(method.key, ranks, len(modules)))
    return charts


def pareto_front(points: Sequence[tuple[float, float]], lower_is_better: bool) -> list[tuple[float, float]]:
    """The points (cost, quality) that no other equals at a lower or equal cost, by rising cost."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], point[1] if lower_is_better else -point[1])):
        if not kept or (y < kept[-1][1] if lower_is_better else y > kept[-1][1]):
            kept.append((x, y))
    return kept


def _looks(summary: Summary) -> dict[str, dict[str, Any]]:
    """Color, marker and line style of every method; where colors repeat, markers are hollow. Inside `style()`."""
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


def _legend_height(n: int) -> int:
    return 10 + _LINE * -(-n // 2)


def _intervals(
    name: str, found: Sequence[tuple[MethodSummary, Difference]], whose: str, summary: Summary
) -> list[Chart]:
    """Differences with their 95 % intervals, a line each. A filled mark is a verdict, a hollow one is none."""
    if not found:
        return []
    title = f"{metric_name(summary)} {whose}"
    factor = metric_factor(summary)
    with style():
        chart, axes = new_figure(70 + 22 * len(found))
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
        label_axes(axes, f"← {sides[0]} | {metric_unit(summary)} | {sides[1]} →", "")
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
    """A mark for each method's mean, a dot for each seed, a dashed line along the Pareto front."""
    points = {m.key: (float(x), m.metric) for m in summary.methods if m.metric is not None and (x := cost(m))}
    if not points:
        return []
    factor, better = metric_factor(summary), "lower" if summary.lower_is_better else "higher"
    limit = _untrained(summary)
    with style():
        chart, axes = new_figure(260 + _legend_height(len(points)))
        looks = _looks(summary)
        axes.set_xscale("log")
        seeds = [(x, factor * value) for x, stats in points.values() for value in stats.values.values()]
        axes.plot(*zip(*seeds, strict=True), ".", ms=3, color=INK, alpha=0.5)
        for key, (x, stats) in points.items():
            axes.plot(x, factor * stats.mean, label=key, **{**looks[key], "linestyle": "", "markersize": 7})
        front = pareto_front([(x, factor * stats.mean) for x, stats in points.values()], summary.lower_is_better)
        axes.step(*zip(*front, strict=True), where="post", color=MUTED, lw=1, ls="--", zorder=1)
        outside = _end_at(axes, None if limit is None else factor * limit, summary.lower_is_better)
        _short_ticks(axes)
        label_axes(axes, x_title.capitalize(), f"{metric_name(summary)} ({metric_unit(summary)}), {better} is better")
        legend_below(chart, axes)
        worse = [f"{key} ({decimal(factor * s.mean)})" for key, (_, s) in points.items() if outside(factor * s.mean)]
        caption = f"Worse than the untrained base, outside the chart: {', '.join(worse)}." if worse else ""
        return [save(chart, name, f"{metric_name(summary)} against {x_title}", caption)]


def _untrained(summary: Summary) -> float | None:
    """The metric of the untrained base."""
    return next((m.metric.mean for m in summary.methods if m.trainable == 0 and m.lr is None and m.metric), None)


def _end_at(axes: Axes, limit: float | None, lower_is_better: bool) -> Callable[[float], bool]:
    """End the y axis at `limit` where values lie on its worse side; returns which values are outside then."""
    low, high = axes.get_ylim()
    if limit is None or not low < limit < high:
        return lambda value: False
    axes.set_ylim((low, limit) if lower_is_better else (limit, high))
    return (lambda value: value > limit) if lower_is_better else (lambda value: value < limit)


def _short_ticks(axes: Axes) -> None:
    """Label a logarithmic x axis with 1k, 10k, 1M."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs) if high / low > 5 else MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _losses(method: MethodSummary, summary: Summary, succeeded: bool = True) -> pd.DataFrame:
    """Validation losses: index step, a column per seed; only the steps that all these seeds evaluated."""
    return _evaluations(method, summary, 2, succeeded)


def _seconds(method: MethodSummary, summary: Summary) -> pd.DataFrame:
    """The times of the evaluations, in the same shape."""
    return _evaluations(method, summary, 3, True)


def _evaluations(method: MethodSummary, summary: Summary, column: int, succeeded: bool) -> pd.DataFrame:
    curves: Mapping[int, Curve] = summary.curves.get(method.key, {})
    found = {
        seed: {entry[0]: entry[column] for entry in curve if entry[2] is not None}
        for seed, curve in curves.items()
        if (method.statuses[seed] == "success") == succeeded
    }
    frame = pd.DataFrame(found, dtype=float).sort_index()
    return frame.dropna() if succeeded else frame


def _usual_start(frames: Any) -> float:
    return median(frame.iloc[0].mean() for frame in frames)


def _loss_curves(
    name: str, x_title: str, frames: Mapping[str, pd.DataFrame], summary: Summary, top: float | None = None
) -> Chart:
    """A line for each method's mean, and a band from its lowest seed to its highest. `top`: where the axis ends."""
    top = _usual_start(frames.values()) if top is None else top
    with style():
        chart, axes = new_figure(240 + _legend_height(len(frames)))
        looks = _looks(summary)
        for key, frame in frames.items():
            axes.fill_between(frame.index, frame.min(axis=1), frame.max(axis=1), color=looks[key]["color"], alpha=0.15)
            axes.plot(frame.index, frame.mean(axis=1), label=key, markevery=[-1], **looks[key])
        outside = _end_at(axes, 1.005 * top, lower_is_better=True)
        _thousands(axes)
        label_axes(axes, x_title, f"Validation loss ({loss_unit(summary)})")
        legend_below(chart, axes)
        higher = [key for key, frame in frames.items() if any(map(outside, frame.mean(axis=1)))]
        caption = f"Partly or entirely above the chart: {', '.join(higher)}." if higher else ""
        return save(chart, name, f"Validation loss against {x_title.lower()}", caption)


def _seeds(method: MethodSummary, frames: Mapping[str, pd.DataFrame], top: float, summary: Summary) -> Chart:
    frame, lost = frames[method.key], _losses(method, summary, succeeded=False)
    with style():
        chart, axes = new_figure(150, 168)
        for other in frames.values():
            axes.plot(other.index, other.mean(axis=1), color=FAINT, lw=1)
        color = _looks(summary)[method.key]["color"]
        axes.plot(frame.index, frame, color=color, lw=1)
        if not lost.empty:
            axes.plot(lost.index, lost, color=INK, lw=1, ls=":", marker="x", ms=3)
        outside = _end_at(axes, max(1.005 * top, 1.02 * frame.min().min()), lower_is_better=True)
        _thousands(axes)
        label_axes(axes, "", method.key)
        is_higher = any(map(outside, frame.max(axis=1))) or any(map(outside, lost.max(axis=1)))
        caption = "Partly above the chart." if is_higher else ""
        return save(
            chart, f"seeds-{method.key}", f"Validation loss of {method.key}, every seed, against steps", caption
        )


def _thousands(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _per_step(summary: Summary) -> tuple[float, str]:
    """How many tokens or examples a step processes."""
    training = summary.study.training
    examples = training.batch_size * training.gradient_accumulation_steps
    if summary.study.is_language_model and training.seq_len:
        return examples * training.seq_len, "tokens seen"
    return examples, "examples seen"


def _by_layer(rows: Sequence[Row], figure: str) -> dict[int, list[float]]:
    """A measurement of the blocks by layer, the values of all seeds."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for block in row.capacity.blocks:
            if (value := getattr(block, figure)) is not None:
                found.setdefault(block.layer, []).append(value)
    return dict(sorted(found.items()))


def _prunes_ranks(method: MethodSummary) -> bool:
    record = registry.find(method.method)
    return record is not None and record.prunes_ranks


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
    with style():
        chart, axes = new_figure(220)
        axes.bar_label(axes.bar(list(counts), list(counts.values()), width=0.7))
        axes.locator_params(integer=True, nbins=9)
        label_axes(axes, title, "Modules")
        return save(chart, name, title, caption)
