"""The sentences around the report's tables and charts, filled in from the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qpeft import methods as registry
from qpeft.compare.report.format import VERDICTS, count, decimal, metric_factor, metric_name, metric_unit
from qpeft.compare.report.kinds import kind_of
from qpeft.compare.study import UNTRAINED

if TYPE_CHECKING:
    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.analysis.types import MethodSummary, Summary
    from qpeft.compare.rows import Row


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Base, data, metric, reference, training, number of methods."""
    study = summary.study
    direction = "lower" if summary.lower_is_better else "higher"
    return [
        ("Base", f"{study.base.id}, {count(study.base.params_total)} parameters"),
        ("Data", study.data.id),
        ("Metric", f"{metric_name(summary)} ({metric_unit(summary)}), {direction} is better"),
        ("Reference", study.reference),
        ("Training", f"{count(study.training.steps)} steps, {_n(len(study.seeds), 'seed')}"),
        ("Methods", str(len(summary.methods))),
    ]


def rules(summary: Summary) -> list[str]:
    """What is equal for all methods."""
    study = summary.study
    training, grid = study.training, study.tuning.grid
    batch = f"{training.batch_size * training.gradient_accumulation_steps} examples"
    if study.is_language_model and training.seq_len:
        batch += f" of {training.seq_len} tokens"
    tried = "No learning rate is tuned: each method uses the learning rate that the study specifies."
    if len(grid) > 1:
        tried = (
            f"Every method tries {len(grid)} learning rates on validation data with seed {study.tuning.seed}, "
            f"which is not one of the final seeds ({_list(study.seeds)})."
        )
    records = [registry.find(method.method) for method in study.methods]
    return [
        "Every method starts from the same base and sees the same examples in the same order. The seed determines that "
        "order, dropout, and the adapter's initial values.",
        f"Every method trains for {count(training.steps)} steps of {batch}, with AdamW, the same schedule and the "
        "same gradient clipping.",
        tried,
        "The test data are read once per run, after training, with the parameters that performed best on validation "
        "data.",
        f"Differences are paired by seed: method minus {study.reference}, and control minus its method.",
        "Trainable, deployed and stored parameters are counted separately. Compare quality at equal size in the "
        "equal-budget tables only.",
        "Failed and diverged runs are shown and counted. No verdict favors a method with such a run.",
        *dict.fromkeys(record.report_note for record in records if record and record.report_note),
    ]


def unfinished(summary: Summary) -> str:
    """How many runs are missing; empty if the study is complete."""
    statuses = [status for method in summary.methods for status in method.statuses.values()]
    missing = statuses.count("missing")
    if not missing:
        return ""
    return f"{missing:,} of {len(statuses):,} planned runs have no row yet. They may change what this page reports."


def tally(summary: Summary) -> list[tuple[str, int]]:
    """How many main methods got each verdict against the reference."""
    main = [m for m in summary.methods if m.role == "main" and m.method != UNTRAINED]
    found = Counter(m.difference.verdict for m in main if m.difference is not None)
    return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]


def answers(summary: Summary, role: str) -> list[dict[str, str]]:
    """The methods of this role with their verdicts and sentences, best first."""
    return [answer(m, m.difference, summary) for m in summary.ordered if m.role == role]


def answer(method: MethodSummary, found: Difference | None, summary: Summary) -> dict[str, str]:
    """One method with its verdict and sentence; `class` is the verdict's CSS class."""
    verdict, css = "reference" if method.key == summary.study.reference else "no result", "none"
    if found is not None:
        verdict, css = f"{VERDICTS[found.verdict]} {found.verdict}", found.verdict.split()[0]
    kind, sentence = kind_of(method, summary), summary.sentences[method.key]
    return {
        "key": method.key,
        "sign": kind.sign,
        "kind": kind.key,
        "verdict": verdict,
        "class": css,
        "sentence": sentence,
    }


def base_value(summary: Summary) -> str:
    """The untrained base's result, which has no place on a logarithmic axis of parameters."""
    factor = metric_factor(summary)
    return " ".join(
        f"The untrained base ({method.key}) has no trainable parameters: {decimal(factor * method.metric.mean)}."
        for method in summary.methods
        if method.trainable == 0 and method.metric is not None
    )


def targets(summary: Summary) -> str:
    """The target losses of the table of convergence."""
    names = {
        "reference": f"{summary.study.reference}'s mean at its end",
        "half_of_full": "the base's minus 50 % of full fine-tuning's gain",
        "ninety_of_full": "the base's minus 90 % of full fine-tuning's gain",
    }
    known = [f"{names[name]}: {loss:.4f}" for name, loss in summary.targets.items() if loss is not None]
    if not known:
        return ""
    return (
        f"Target validation losses: {'; '.join(known)}. A target is reached at the first evaluation at or below it; "
        "“>” means that not every seed reached it."
    )


def seconds(summary: Summary) -> str:
    """What the seconds of the section on convergence mean."""
    text = (
        "Seconds are the wall time of the runs, evaluations included. Runs that ran in parallel shared the machine, so "
        "these seconds do not rank the methods by speed."
    )
    if any(method.cost for method in summary.methods):
        return f"{text} Times that were measured alone are in the section Costs."
    return f"{text} No times have been measured alone{_yet(summary)}."


def tuning(summary: Summary) -> str:
    """How learning rates were chosen."""
    if len(summary.study.tuning.grid) == 1:
        return "None was tried: each method used the learning rate that the study specifies."
    grid = _list(f"{factor:g}" for factor in summary.study.tuning.grid)
    text = f"Each method tried its own middle learning rate times {grid}; the lowest validation loss decided."
    untrained = next((m.figures.get("quality.valid_loss") for m in summary.methods if m.method == UNTRAINED), None)
    losses = [loss for trials in summary.tuning.values() for _, loss in trials]
    if untrained is not None and untrained.mean in losses:
        text += f" A trial of {untrained.mean:.4f}, the loss of the base itself, never improved on its initial loss."
    return text


def edges(summary: Summary) -> str:
    """Whose best learning rate is the lowest or highest of its grid."""
    found = [f"{method.key} ({method.lr_at_edge})" for method in summary.methods if method.lr_at_edge is not None]
    if not found:
        return ""
    return f"The best learning rate is at an edge of the grid for {_list(found)}. A wider grid may favor these methods."


def costs(summary: Summary) -> str:
    """Where times were measured."""
    machines = sorted({method.hardware for method in summary.methods if method.hardware is not None})
    if not machines:
        return f"Times have not been measured{_yet(summary)}. Parameters and bytes are those of the runs."
    start = "Times and memory were measured while nothing else of the study ran"
    if len(machines) == 1:
        return f"{start}, on {machines[0]}."
    return f"{start}, on different machines ({_list(machines)}): times of different machines are not comparable."


def failures(summary: Summary) -> str:
    """How many runs failed, trials of learning rates included."""
    trials = sum(row.role == "tuning" for row in summary.failures)
    return f"{_n(len(summary.failures), 'run')} did not succeed, including {_n(trials, 'trial')} of learning rates."


def failure(row: Row) -> dict[str, str]:
    """A row that is no success, for the page."""
    without = {"diverged": "a loss was not finite, or the last one was more than twice the first"}
    message = ": ".join(part for part in (row.error_type, row.error_msg) if part)
    return {
        "name": row.cell_id,
        "status": row.status,
        "message": message or without.get(row.status, "no message"),
        "traceback": row.traceback_tail or "",
    }


def _yet(summary: Summary) -> str:
    """Unless the study measures no costs."""
    return " yet" if summary.study.costs else ""


def _n(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _list(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))
