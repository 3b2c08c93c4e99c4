"""The tables of quality: all methods, equal budgets, controls, rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qpeft.studies.comparison.report import numbers, words
from qpeft.studies.comparison.report.cells import amount, difference, name, rank, reached, stats
from qpeft.studies.comparison.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from qpeft.studies.comparison.findings import Block, MethodSummary, Summary

NAME = Column("Method", is_number=False)
_VERDICT = Column(
    "Verdict", is_number=False, hint="better or worse only if the interval excludes 0 after Holm's correction"
)
_FURTHER = {
    "test_loss": Column("Test loss", "nats"),
    "test_ppl": Column("Perplexity"),
    "bits_per_byte": Column("Bits per byte"),
    "test_accuracy": Column("Accuracy", "share right"),
    "bleu": Column("BLEU"),
    "rouge1": Column("ROUGE-1"),
    "rouge2": Column("ROUGE-2"),
    "rougeL": Column("ROUGE-L"),
    "bertscore_f1": Column("BERTScore", "F1"),
    "forgetting_shifted": Column("Forgetting", "nats"),
}


def ordered(summary: Summary) -> list[MethodSummary]:
    """Main methods, the best first, each with its controls after it; equal-budget blocks have tables of their own."""
    by_quality = sorted(summary.methods, key=lambda method: _badness(method, summary.lower_is_better))
    main = [method for method in by_quality if method.role == "main"]
    controls = [method for method in by_quality if method.role == "control"]
    found = [item for method in main for item in (method, *(c for c in controls if c.against == method.key))]
    return found + [control for control in controls if control not in found]


def methods(summary: Summary) -> Table:
    """What each method is."""
    planned = {method["key"]: method for method in summary.study["methods"]}
    columns = [NAME, Column("What it is", is_number=False), Column("Kind", is_number=False)]
    columns += [Column("Settings", is_number=False), Column("Note", is_number=False)]
    rows = []
    for method in _all(summary):
        kind = words.mark_of(method, summary.study).word
        kind += f" of {method.against}" if method.against else ""
        kind += ", equal budget" if method.role == "equal_budget" else ""
        note = planned[method.key].get("note") or ""
        label = "" if method.label == method.key else method.label
        texts = (label, kind, words.settings(method.settings), note)
        rows.append([name(method, summary), *(Cell(text, text) for text in texts)])
    return Table("methods", "Every method of the study", columns, rows).without_empty()


def results(summary: Summary) -> Table:
    """Quality of every method beside its size."""
    study = summary.study
    columns = [
        NAME,
        Column("Rank", hint="among the main methods with enough seeds, none of them failed"),
        Column("Trainable", "numbers"),
        Column("Deployed", "numbers", hint="needed at inference beside the base"),
        Column(words.capital(words.metric(study)), f"{words.unit(study)}, ± s.d."),
        Column(f"Δ to {study['reference']}", "95 % interval"),
        _VERDICT,
        Column(
            f"Steps to {study['reference']}'s loss",
            hint="first evaluation at or below it; > 150 (3/5): three seeds of five got there",
        ),
        Column("Seeds", "ok / planned"),
        Column("Flags", is_number=False),
    ]
    rows = [_result(method, summary) for method in ordered(summary)]
    return Table(
        "results", f"{words.capital(words.metric(study))} on test data, best first", columns, rows
    ).without_empty()


def further(summary: Summary) -> Table:
    """Whatever else was measured on the test data."""
    wanted = [(key, column) for key, column in _FURTHER.items() if key != summary.study["metric"]]
    rows = [
        [name(method, summary), *(stats(method.figures.get(f"quality.{key}")) for key, _ in wanted)]
        for method in ordered(summary)
    ]
    columns = [NAME, *(column for _, column in wanted)]
    return Table("further", "Other figures of the test data, mean ± s.d.", columns, rows).without_empty()


def block(found: Block, summary: Summary, index: int) -> Table:
    """Methods at one budget."""
    columns = [NAME, Column("Rank"), Column("Trainable", "numbers"), Column("Of the budget", "%")]
    columns += [Column(words.capital(words.metric(summary.study)), f"{words.unit(summary.study)}, ± s.d.")]
    columns += [Column(f"Δ to {found.of}", "95 % interval"), _VERDICT, Column("Note", is_number=False)]
    factor, rows = words.factor(summary.study), []
    for member in found.members:
        method = summary[member.key]
        rows.append([
            name(method, summary),
            rank(member.rank),
            amount(member.trainable),
            Cell(f"{100 * member.ratio:.1f}", member.ratio),
            stats(method.metric, factor),
            *difference(member.difference, factor),
            _note(member.ratio, member.over_budget),
        ])  # fmt: skip
    caption = f"At most {numbers.count(found.budget)} trainable numbers, what {found.of} trains"
    return Table(f"block{index}", caption, columns, rows)


def controls(summary: Summary) -> Table:
    """Each control beside what it is a control of."""
    title = words.capital(words.metric(summary.study))
    columns = [NAME, Column("Control of", is_number=False), Column("Trainable", "numbers"), Column(title, "± s.d.")]
    columns += [Column(f"{title} of its method", "± s.d."), Column("Control \u2212 method", "95 % interval"), _VERDICT]
    factor, rows = words.factor(summary.study), []
    for method in ordered(summary):
        if method.against is None:
            continue
        target = summary[method.against]
        own = [amount(method.trainable), stats(method.metric, factor), stats(target.metric, factor)]
        rows.append([
            name(method, summary), name(target, summary), *own, *difference(method.difference_to_target, factor)
        ])  # fmt: skip
    return Table("controls", "Controls beside their methods", columns, rows)


def tuning(summary: Summary) -> Table:
    """Every rate that was tried, with the validation loss that it ended at."""
    tried = {method.key: summary.tuning.get(method.key, []) for method in summary.methods}
    n_trials = max((len(trials) for trials in tried.values()), default=0)
    columns = [NAME, Column("Chosen"), *(Column(f"Trial {i + 1}", "rate: loss") for i in range(n_trials))]
    columns += [Column("At the edge", is_number=False)]
    rows = []
    for method in _all(summary):
        if not (trials := tried[method.key]):
            continue
        cells = [_trial(lr, loss, method.lr) for lr, loss in trials] + [Cell("")] * (n_trials - len(trials))
        edge = Cell(f"edge: {method.lr_at_edge}", method.lr_at_edge, kind="warning") if method.lr_at_edge else Cell("")
        rows.append([name(method, summary), Cell(numbers.rate(method.lr), method.lr), *cells, edge])
    return Table("tuning", "Learning rates tried, and the validation loss each ended at", columns, rows)


def _all(summary: Summary) -> list[MethodSummary]:
    found = ordered(summary)
    return found + [method for method in summary.methods if method not in found]


def _badness(method: MethodSummary, lower_is_better: bool) -> float:
    if method.metric is None:
        return math.inf
    return method.metric.mean if lower_is_better else -method.metric.mean


def _result(method: MethodSummary, summary: Summary) -> list[Cell]:
    factor = words.factor(summary.study)
    return [
        name(method, summary),
        rank(method.rank),
        amount(method.trainable),
        amount(method.deployed),
        stats(method.metric, factor),
        *difference(method.difference, factor),
        reached(method.steps_to.get("reference")),
        Cell(f"{method.ok} / {len(method.statuses)}", method.ok),
        Cell("; ".join(method.flags), "; ".join(method.flags)),
    ]


def _note(ratio: float, over_budget: bool) -> Cell:
    if over_budget:
        return Cell("over the budget, not ranked", "over", kind="warning")
    return Cell("below 80 % of the budget, not ranked" if ratio < 0.8 else "", ratio)


def _trial(lr: float, loss: float | None, chosen: float | None) -> Cell:
    text = f"{numbers.rate(lr)}: {numbers.number(loss, 4) if loss is not None else 'failed'}"
    return Cell(text, loss, kind="chosen" if lr == chosen else "")
