"""Which charts a study has, and what they are drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from qpeft import methods
from qpeft.compare.report import canvas, forest, histogram, pareto, trajectories, words
from qpeft.compare.report.results import ordered
from qpeft.compare.report.trajectories import Curve, Path

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import MethodSummary, Summary
    from qpeft.compare.resolved import ResolvedStudy
    from qpeft.compare.rows import Place, Row

_NAMED = 12  # with more methods those of equal-budget blocks have numbers in the charts
_LAYERS = (
    ("effective_rank", "Effective rank of Δy"),
    ("cka", "CKA to the base's hidden states"),
)


@dataclass(frozen=True)
class Chart:
    """`document` is the file under plots/, `title` is read aloud in the picture's place."""

    name: str
    title: str
    document: str
    caption: str = ""

    @property
    def svg(self) -> Markup:
        """As it stands in the page."""
        return canvas.inline(self.document, re.sub(r"\W", "-", self.name), self.title)


def differences(summary: Summary) -> list[Chart]:
    """Every method against the reference."""
    found = [m for m in ordered(summary) if m.difference is not None]
    reference = summary[summary.study.reference]
    lines = [_line(method, reference, method.difference, summary, method.against is not None) for method in found]
    return _forest("differences", lines, f"minus that of {reference.key}", summary)


def control_differences(summary: Summary) -> list[Chart]:
    """Every control against its method."""
    found = [m for m in ordered(summary) if m.difference_to_target is not None]
    lines = [_line(m, summary[str(m.against)], m.difference_to_target, summary) for m in found]
    return _forest("controls", lines, "of the control minus that of its method", summary)


def against_numbers(summary: Summary) -> list[Chart]:
    """Quality against trained and against deployed numbers."""
    return [
        *_pareto("trainable", "trainable numbers", lambda method: method.trainable, summary),
        *_pareto("deployed", "deployed numbers", lambda method: method.deployed, summary),
    ]


def against_time(summary: Summary) -> list[Chart]:
    """Quality against the time of a step, as a multiple of the reference's, which was taken in turns with it."""
    title = f"time of a training step, \u00d7 {summary.study.reference}"
    return _pareto("step-time", title, lambda method: method.cost.get("step_ratio"), summary)


def convergence(summary: Summary) -> list[Chart]:
    """All main methods against steps, what was seen, and seconds; and the second half of the steps, nearer."""
    per_step, seen = _per_step(summary.study)
    main = [method for method in ordered(summary) if method.role == "main"]
    steps = _with_a_course(_path(method, summary) for method in main)
    half = max((path.x[-1] for path in steps), default=0.0) / 2
    title = f"Validation loss ({words.loss_unit(summary.study)})"
    found = [
        _together("steps", steps, title),
        _together(seen, _with_a_course(_path(method, summary, per_step) for method in main), title),
        _together("seconds", _with_a_course(_path_in_seconds(method, summary) for method in main), title),
        _together("second half of the steps", _with_a_course(path.since(half) for path in steps), title, half),
    ]
    return [chart for chart in found if chart is not None]


def _together(against: str, paths: Sequence[Path], y_title: str, left: float = 0.0) -> Chart | None:
    if not paths:
        return None
    name = "convergence-end" if left else f"convergence-{against.split()[0]}"
    top = trajectories.ceiling(paths, start=not left)
    document = trajectories.draw_all(paths, name, words.capital(against), y_title, top, left)
    return Chart(name, f"Validation loss against {against}", document, trajectories.above(paths, top))


def each_method(summary: Summary) -> list[Chart]:
    """A small chart a method, every seed a dot."""
    paths = _with_a_course(_path(method, summary) for method in ordered(summary))
    found = []
    for path in paths:
        name, others = f"seeds-{path.name}", [other for other in paths if other is not path]
        document = trajectories.draw_one(path, others, name, trajectories.ceiling(paths))
        found.append(Chart(name, f"Validation loss of {path.name}, every seed, against steps", document))
    return found


def layers(summary: Summary, rows: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Figures of capacity, layer by layer."""
    found = []
    for figure, title in _LAYERS:
        paths = [path for method in summary.methods if method.role == "main"
                 if (path := _layers(method, rows[method.key], figure, summary)) is not None]  # fmt: skip
        if paths:
            document = trajectories.draw_all(paths, f"layers-{figure}", "Layer", title)
            seeds = max(len(values) for path in paths for values in path.seeds)
            caption = "Of one seed." if seeds == 1 else "Means over seeds; bands from the lowest to the highest."
            found.append(Chart(f"layers-{figure}".replace("_", "-"), f"{title}, layer by layer", document, caption))
    return found


def sora_ranks(summary: Summary, rows: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """What SoRA's gates left of the ranks, over modules and seeds."""
    found = []
    for method in (method for method in summary.methods if _prunes_ranks(method.method)):
        modules = [module for row in rows[method.key] for module in row.capacity.modules]
        ranks = [rank for module in modules if (rank := _rank(module)) is not None]
        if ranks:
            name, title = f"ranks-{method.key}", f"Ranks that {method.key} kept"
            mark = words.mark_of(method, summary.study)
            document = histogram.draw(ranks, name, mark, title, "Modules")
            found.append(Chart(name, title, document, _said_of(ranks, len(modules))))
    return found


def _prunes_ranks(method: str) -> bool:
    found = methods.find(method)
    return found is not None and found.prunes_ranks


def _rank(module: Place) -> int | None:
    """Of a module's ΔW: 0 where nothing of an update is left; None where it was not measured."""
    if module.weight_numerical_rank is not None:
        return module.weight_numerical_rank
    return 0 if "update_ratio" in module.model_fields_set and module.update_ratio is None else None


def _said_of(ranks: Sequence[int], n_modules: int) -> str:
    text = f"{len(ranks)} adapted modules"
    if n_modules > len(ranks):
        text += f"; the rank of {n_modules - len(ranks)} more was not measured"
    return f"{text}. Rank 0: every rank was pruned, and nothing is changed." if 0 in ranks else f"{text}."


def _forest(name: str, lines: list[forest.Line], whose: str, summary: Summary) -> list[Chart]:
    if not lines:
        return []
    title = f"{words.capital(words.metric(summary.study))} {whose}"
    document = forest.draw(lines, name, f"{title} ({words.unit(summary.study)})", summary.lower_is_better)
    return [Chart(name, f"{title}, with 95 % intervals", document)]


def _line(
    method: MethodSummary, other: MethodSummary, found: Any, summary: Summary, indent: bool = False
) -> forest.Line:
    assert method.metric is not None
    assert other.metric is not None
    factor = words.factor(summary.study)
    shared = sorted(method.metric.values.keys() & other.metric.values.keys())
    seeds = tuple(factor * (method.metric.values[seed] - other.metric.values[seed]) for seed in shared)
    low, high = (None if bound is None else factor * bound for bound in (found.low, found.high))
    is_shown = found.verdict in ("better", "worse")
    mark = words.mark_of(method, summary.study)
    return forest.Line(method.key, mark, factor * found.mean, low, high, seeds, is_shown, indent)


def _pareto(name: str, x_title: str, cost: Callable[[MethodSummary], float | None], summary: Summary) -> list[Chart]:
    factor = words.factor(summary.study)
    is_crowded = len(summary.methods) > _NAMED
    points = [
        pareto.Point(method.key, words.mark_of(method, summary.study), float(x), factor * method.metric.mean,
                     tuple(factor * value for value in method.metric.values.values()),
                     is_crowded and method.role == "equal_budget")
        for method in _reference_last(summary) if method.metric is not None and (x := cost(method))
    ]  # fmt: skip
    if not points:
        return []
    better = "lower" if summary.lower_is_better else "higher"
    metric = words.capital(words.metric(summary.study))
    y_title = f"{metric} ({words.unit(summary.study)}), {better} is better"
    document = pareto.draw(points, name, words.capital(x_title), y_title, summary.lower_is_better)
    return [Chart(name, f"{metric} against {x_title}", document, pareto.beyond(points, summary.lower_is_better))]


def _reference_last(summary: Summary) -> list[MethodSummary]:
    """So that it is drawn over the others."""
    return sorted(summary.methods, key=lambda method: method.key == summary.study.reference)


def _path(method: MethodSummary, summary: Summary, per_step: float = 1.0) -> Path | None:
    whole, lost = _curves(method, summary)
    return trajectories.of_steps(method.key, words.mark_of(method, summary.study), whole, lost, per_step)


def _path_in_seconds(method: MethodSummary, summary: Summary) -> Path | None:
    whole, _ = _curves(method, summary)
    return trajectories.of_seconds(method.key, words.mark_of(method, summary.study), whole)


def _curves(method: MethodSummary, summary: Summary) -> tuple[list[Curve], list[Curve]]:
    """Those of the seeds that succeeded, and the others."""
    found = summary.curves.get(method.key, {})
    whole = [curve for seed, curve in found.items() if method.statuses[seed] == "success"]
    return whole, [curve for seed, curve in found.items() if method.statuses[seed] != "success"]


def _with_a_course(paths: Iterable[Path | None]) -> list[Path]:
    return [path for path in paths if path is not None and len(path.x) > 1]


def _per_step(study: ResolvedStudy) -> tuple[float, str]:
    """What a step sees, and what it is called."""
    training = study.training
    examples = training.batch_size * training.gradient_accumulation_steps
    if study.task == "causal-lm" and training.seq_len:
        return examples * training.seq_len, "tokens seen"
    return examples, "examples seen"


def _layers(method: MethodSummary, rows: Sequence[Row], figure: str, summary: Summary) -> Path | None:
    by_layer: dict[int, list[float]] = {}
    for row in rows:
        for block in row.capacity.blocks:
            if (value := getattr(block, figure)) is not None:
                by_layer.setdefault(block.layer, []).append(value)
    if not by_layer:
        return None
    at = sorted(by_layer)
    mark = words.mark_of(method, summary.study)
    return Path(method.key, mark, tuple(map(float, at)), tuple(tuple(by_layer[layer]) for layer in at))
