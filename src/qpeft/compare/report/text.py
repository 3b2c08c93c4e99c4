"""The sentences around the report's tables and charts, filled in from the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpeft.compare.analysis.limits import noisy_costs
from qpeft.compare.analysis.sentences import plural
from qpeft.compare.rate_search import MOST_EXTENSIONS
from qpeft.compare.report.format import VERDICTS, count, kind_of

if TYPE_CHECKING:
    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.analysis.types import MethodSummary, Summary
    from qpeft.compare.rows import Row
    from qpeft.compare.study import Training


PUBLISHED = (
    "Published values are those of other runs, with other software, hardware and seeds, and perhaps other settings. "
    "The difference is the measured mean minus the published value; it has no interval."
)


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Base, data, metric, reference, training, number of methods."""
    study = summary.study
    direction = "lower" if summary.lower_is_better else "higher"
    return [
        ("Base", f"{study.base.id}, {count(study.base.params_total)} parameters"),
        ("Data", study.data.id),
        ("Metric", f"{summary.metric.title} ({summary.metric.unit}), {direction} is better"),
        ("Reference", study.reference),
        ("Training", f"{length(study.training)}, {plural(len(study.seeds), 'seed')}"),
        ("Methods", str(len(summary.methods))),
    ]


def length(training: Training) -> str:
    """The steps of a run, and its epochs if the study specifies them."""
    steps = f"{count(training.steps)} steps"
    return steps if training.epochs is None else f"{steps} (epochs: {training.epochs:g})"


def rules(summary: Summary) -> list[str]:
    """What is equal for all methods."""
    study = summary.study
    training, grid = study.training, study.tuning.grid
    batch = f"{training.batch_size * training.gradient_accumulation_steps} examples"
    if study.is_language_model and training.seq_len:
        batch += f" of {training.seq_len} tokens"
    smoothing = f", label smoothing of {training.label_smoothing:g}" if training.label_smoothing else ""
    tried = "No learning rate is tuned: each method uses the learning rate that the study specifies."
    if len(grid) > 1:
        tried = (
            f"Every method tries {len(grid)} learning rates on validation data with seed {study.tuning.seed}, "
            f"which is not one of the final seeds ({', '.join(map(str, study.seeds))}): its own middle learning rate "
            f"times {', '.join(f'{factor:g}' for factor in grid)}. The lowest validation loss decides."
        )
        if not any(found.search.is_open for found in summary.rows.values()):  # earlier versions tried the grid alone
            tried += (
                " While the lowest or highest learning rate is the best, one more is tried beyond it, by the factor "
                f"of the grid at this edge, at most {MOST_EXTENSIONS} times."
            )
    return [
        "Every method starts from the same base and sees the same examples in the same order. The seed determines that "
        "order, dropout, and the adapter's initial values.",
        f"Every method trains for {length(training)} of {batch}, with AdamW, the same schedule of the learning rate "
        f"({training.schedule}){smoothing} and the same gradient clipping.",
        tried,
        "The test data are read once per run, after training, with the parameters that performed best on validation "
        "data.",
        f"Differences are paired by seed: method minus {study.reference}, and control minus its method.",
        "Trainable, deployed and stored parameters are counted separately. Compare quality at equal size in the "
        "equal-budget tables only.",
        "Failed and diverged runs are shown and counted. No verdict favors a method with such a run.",
    ]


def answers(summary: Summary, role: str) -> list[dict[str, str]]:
    """The methods of this role with their verdicts and sentences, best first."""
    return [answer(m, m.difference, summary) for m in summary.ordered if m.role == role]


def answer(method: MethodSummary, found: Difference | None, summary: Summary) -> dict[str, str]:
    """One method with its verdict and sentence; `class` is the verdict's CSS class."""
    verdict, css = "reference" if method.key == summary.study.reference else "no result", "none"
    if found is not None:
        verdict, css = f"{VERDICTS[found.verdict]} {found.verdict}", found.verdict.split()[0]
    kind, sentence = kind_of(method, summary), summary.sentences[method.key]
    names = {"key": method.key, "sign": kind.sign, "kind": kind.key}
    return {**names, "verdict": verdict, "class": css, "sentence": sentence}


def targets(summary: Summary) -> str:
    """The target losses of the table of convergence."""
    if not summary.targets:
        return ""
    reference = summary.study.reference
    known = ", ".join(f"{share} %: {loss:.4f}" for share, loss in summary.targets.items())
    return (
        f"The gain of {reference} is its initial validation loss minus its final one, each a mean over seeds. "
        f"Validation losses at these shares of it: {known}. A seed reaches a share at its first evaluation at or below "
        "the loss; losses are not interpolated, so steps are known as finely as evaluations are frequent. Steps and "
        "seconds are medians over seeds: (4/5) means that four of five seeds reached the share, and “>” that half of "
        "the seeds or more, or without a fraction all, did not. A failed or diverged seed counts as one that did not."
    )


def costs(summary: Summary) -> str:
    """Where times were measured."""
    machines = sorted({method.hardware for method in summary.methods if method.hardware is not None})
    if not machines:
        yet = " yet" if summary.study.costs else ""
        return f"Times have not been measured{yet}. Parameters and bytes are those of the runs."
    apart = ": times of different machines are not comparable" if len(machines) > 1 else ""
    noise = noisy_costs(summary)
    if summary.cost_noise is not None and not noise:
        noise = f"Two measurements of the same model differ by at most {summary.cost_noise:.0%}."
    where = f"Times and memory were measured while nothing else of the study ran, on {', '.join(machines)}{apart}."
    return f"{where} {noise}".strip()


def failures(summary: Summary) -> str:
    """How many runs failed, trials of learning rates included."""
    n, trials = len(summary.failures), sum(row.role == "tuning" for row in summary.failures)
    return f"{plural(n, 'run')} did not succeed, including {plural(trials, 'trial')} of learning rates."


def failure(row: Row) -> str:
    """Why a row is no success."""
    message = ": ".join(part for part in (row.error_type, row.error_msg) if part)
    if not message and row.status == "diverged":
        return "a loss was not finite, or the last one was more than twice the first"
    return message or "no message"
