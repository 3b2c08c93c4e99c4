"""The sentences around the tables: filled in from the study, so that none of them can be untrue of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.compare.report import numbers, words
from qpeft.compare.report.window import RULE
from qpeft.compare.study import UNTRAINED

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import Summary
    from qpeft.compare.resolved import ResolvedStudy

CAPACITY = (
    "Figures of whole layers are comparable between all methods: both models read the base's own hidden states, and Δy "
    "is what the adapter changes. Figures of modules are those of the maps that a method adapts, and ΔW exists only "
    "where the update is a matrix. They say how an update is made, not how good it is."
)


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What a reader asks first."""
    study = summary.study
    n_seeds = len(study.seeds)
    direction = "lower" if summary.lower_is_better else "higher"
    return [
        ("Base", f"{study.base.id}, {numbers.count(study.base.params_total)} numbers"),
        ("Data", study.data.id),
        ("Metric", f"{words.metric(study)}, {words.unit(study)}; {direction} is better"),
        ("Reference", study.reference),
        ("Training", f"{numbers.count(study.training.steps)} steps, {n_seeds} {_plural('seed', n_seeds)}"),
        ("Methods", str(len(summary.methods))),
    ]


def rules(study: ResolvedStudy) -> list[str]:
    """How the comparison is kept fair."""
    training = study.training
    batch = f"{training.batch_size * training.gradient_accumulation_steps} examples"
    if study.task == "causal-lm" and training.seq_len:
        batch += f" of {training.seq_len} tokens"
    found = [
        "Every method starts from the same base and sees the same examples in the same order; a seed decides that "
        "order, dropout, and the adapter's start.",
        f"Every method trains for {numbers.count(training.steps)} steps of {batch}, with AdamW, the same schedule "
        "and the same gradient clipping.",
        _tried(study),
        "The test data are read once a run, after training, with the numbers that did best on validation data.",
        f"Differences are paired by seed: method minus {study.reference}, and control minus its method.",
        "Trainable, deployed and stored numbers are counted apart. Quality at equal size is read from the equal-budget "
        "tables alone.",
        "Failed and diverged runs are shown and counted, and no verdict favours a method that lost one.",
    ]
    records = [methods.find(method.method) for method in study.methods]
    return found + list(dict.fromkeys(record.report_note for record in records if record and record.report_note))


def unfinished(summary: Summary) -> str:
    """How much is missing; nothing if the study is whole."""
    statuses = [status for method in summary.methods for status in method.statuses.values()]
    missing = statuses.count("missing")
    if not missing:
        return ""
    return (
        f"{missing:,} of {len(statuses):,} planned trainings have no row yet; what is said here may change with them."
    )


def forest(summary: Summary) -> str:
    """How to read the chart of differences."""
    text = (
        "Lines are 95 % intervals, small dots seeds. A filled mark is a difference that is shown; a hollow one is not, "
        f"by its interval or by Holm's correction. {RULE} An arrow points to it, and its figures stand there whole."
    )
    if any(method.role == "control" for method in summary.methods):
        text += " Controls stand beneath their method."
    return text


def base(summary: Summary) -> str:
    """Where the untrained base lies, which has no place on a logarithmic axis."""
    factor = words.factor(summary.study)
    found = [
        f"The untrained base ({method.key}) has no place on this axis: {numbers.number(factor * method.metric.mean)}."
        for method in summary.methods
        if method.trainable == 0 and method.metric is not None
    ]
    return " ".join(found)


def targets(summary: Summary) -> str:
    """The losses that were waited for."""
    names = {
        "reference": f"{summary.study.reference}'s mean at its end",
        "half_of_full": "the base's less half of what full fine-tuning gained",
        "ninety_of_full": "the base's less 90 % of what full fine-tuning gained",
    }
    known = [f"{names[name]}: {loss:.4f}" for name, loss in summary.targets.items() if loss is not None]
    if not known:
        return ""
    return (
        f"Validation losses waited for: {'; '.join(known)}. What counts is the first evaluation at or below; "
        "“>” means that not every seed got there."
    )


def _tried(study: ResolvedStudy) -> str:
    n_rates = len(study.tuning.grid)
    if n_rates == 1:
        return "No learning rate is tuned: each method trains at the rate that the study gives it."
    return (
        f"Every method tries {n_rates} learning rates on validation data with seed {study.tuning.seed}, which is "
        f"not among the final seeds {_list(study.seeds)}."
    )


def seconds(summary: Summary) -> str:
    """Whose seconds the section on convergence tells, and where better ones are."""
    text = (
        "Seconds are wall time of the trainings as they ran, evaluations included. Where trainings ran side by side "
        "they shared the machine, so these seconds do not rank the methods' speed."
    )
    if any(method.cost for method in summary.methods):
        return f"{text} Times that were measured alone are under Costs."
    return f"{text} No times have been measured alone{_yet(summary)}."


def tuning(summary: Summary) -> str:
    """How rates were chosen."""
    if len(summary.study.tuning.grid) == 1:
        return "None was tried: each method trained at the rate that the study gives it."
    grid = _list(f"{factor:g}" for factor in summary.study.tuning.grid)
    text = f"Each method tried its own middle rate times {grid}; the lowest validation loss chose."
    untrained = next((m.figures.get("quality.valid_loss") for m in summary.methods if m.method == UNTRAINED), None)
    losses = [loss for trials in summary.tuning.values() for _, loss in trials]
    if untrained is not None and untrained.mean in losses:
        text += f" A trial of {untrained.mean:.4f}, the loss of the base itself, never got below its start."
    return text


def _yet(summary: Summary) -> str:
    """Unless the study does without times; one that was begun before it could do so says nothing of it."""
    return " yet" if summary.study.costs else ""


def edges(summary: Summary) -> str:
    """Whose best rate lies at the end of its grid."""
    found = [f"{method.key} ({method.lr_at_edge})" for method in summary.methods if method.lr_at_edge is not None]
    if not found:
        return ""
    return f"The best rate lies at an end of the grid for {_list(found)}: a wider grid may favour them."


def costs(summary: Summary) -> str:
    """Where times were taken."""
    machines = sorted({method.hardware for method in summary.methods if method.hardware is not None})
    if not machines:
        return f"Times have not been measured{_yet(summary)}. Numbers and bytes are those of the trainings."
    start = "Times and memory were measured with nothing else of the study running"
    if len(machines) == 1:
        return f"{start}, on {machines[0]}."
    return f"{start}, on different machines ({_list(machines)}): times of one are not comparable with those of another."


def failures(summary: Summary) -> str:
    """How many, trials of rates included."""
    trials = sum(row.role == "tuning" for row in summary.failures)
    n = len(summary.failures)
    return f"{n} {_plural('run', n)} did not succeed; trials of learning rates among them: {trials}."


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _list(items: Any) -> str:
    return ", ".join(map(str, items))
