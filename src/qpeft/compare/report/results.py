"""The tables of quality: all methods, equal budgets, controls, rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qpeft.compare.report import cells, numbers, words
from qpeft.compare.report.tables import Cell, Column, Table
from qpeft.compare.study import LEAST_RANKED

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import Block, BlockMember, MethodSummary, Summary
    from qpeft.compare.analysis.statistics import Difference
    from qpeft.compare.rows import Row

_FURTHER = {
    "test_loss": ("Test loss", "nats"),
    "test_ppl": ("Perplexity", ""),
    "bits_per_byte": ("Bits per byte", ""),
    "test_accuracy": ("Accuracy", "share right"),
    "bleu": ("BLEU", ""),
    "rouge1": ("ROUGE-1", ""),
    "rouge2": ("ROUGE-2", ""),
    "rougeL": ("ROUGE-L", ""),
    "bertscore_f1": ("BERTScore", "F1"),
    "forgetting_shifted": ("Forgetting", "nats"),
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
    found = _all(summary)
    notes = {method.key: method.note or "" for method in summary.study.methods}
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        _of_words("What it is", ["" if m.label == m.key else m.label for m in found]),
        _of_words("Kind", [_kind(m, summary) for m in found]),
        _of_words("Settings", [words.settings(m.settings) for m in found]),
        _of_words("Note", [notes[m.key] for m in found]),
    ]
    return Table("methods", "Every method of the study", columns)


def results(summary: Summary) -> Table:
    """Quality of every method beside its size."""
    found, reference = ordered(summary), summary.study.reference
    hint = "first evaluation at or below it; > 150 (3/5): three seeds of five got there"
    arrivals = cells.arrivals(m.steps_to.get("reference") for m in found)
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Rank", cells.counts(m.rank for m in found), hint="of main methods with enough seeds, none failed"),
        Column("Trainable", cells.counts(m.trainable for m in found), "numbers"),
        Column(
            "Deployed",
            cells.counts(m.deployed for m in found),
            "numbers",
            "needed at inference beside the base; a mean of the seeds",
        ),
        _metric(found, summary),
        *_differences(f"Δ to {reference}", [m.difference for m in found], summary),
        Column(f"Steps to {reference}'s loss", arrivals, hint=hint),
        Column("Seeds", [Cell(f"{m.ok} / {len(m.statuses)}", m.ok) for m in found], "ok / planned"),
        _of_words("Flags", ["; ".join(m.flags) for m in found]),
    ]
    return Table("results", f"{words.capital(words.metric(summary.study))} on test data, best first", columns)


def further(summary: Summary) -> Table:
    """Whatever else was measured on the test data."""
    found = ordered(summary)
    columns = [Column("Method", cells.names(found, summary), is_number=False)]
    for key, (title, unit) in _FURTHER.items():
        if key != summary.study.metric:
            columns.append(Column(title, cells.means([m.figures.get(f"quality.{key}") for m in found]), unit))
    return Table("further", "Other figures of the test data, mean ± s.d.", columns)


def block(block: Block, summary: Summary, index: int) -> Table:
    """Methods at one budget."""
    members, found = block.members, [summary[member.key] for member in block.members]
    shares = cells.written((100 * member.ratio for member in members), lambda share: f"{share:.1f}")
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Rank", cells.counts(member.rank for member in members)),
        Column("Trainable", cells.counts(member.trainable for member in members), "numbers"),
        Column("Of the budget", shares, "%"),
        _metric(found, summary),
        *_differences(f"Δ to {block.of}", [member.difference for member in members], summary),
        Column("Note", [_note(member) for member in members], is_number=False),
    ]
    caption = f"At most {numbers.count(block.budget)} trainable numbers, what {block.of} trains"
    return Table(f"block{index}", caption, columns)


def controls(summary: Summary) -> Table:
    """Each control beside what it is a control of."""
    found = [method for method in ordered(summary) if method.against is not None]
    targets = [summary[str(method.against)] for method in found]
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Control of", cells.names(targets, summary), is_number=False),
        Column("Trainable", cells.counts(m.trainable for m in found), "numbers"),
        _metric(found, summary),
        _metric(targets, summary, " of its method"),
        *_differences("Control \u2212 method", [m.difference_to_target for m in found], summary),
    ]
    return Table("controls", "Controls beside their methods", columns)


def tuning(summary: Summary) -> Table:
    """Every rate that was tried, with the lowest validation loss on its way."""
    found = [method for method in _all(summary) if summary.tuning.get(method.key)]
    n_trials = max((len(summary.tuning[m.key]) for m in found), default=0)
    lost = {(row.method, numbers.rate(_rate(row))): row.status for row in summary.failures if _rate(row)}
    columns = [
        Column("Method", cells.names(found, summary), is_number=False),
        Column("Chosen", cells.written((m.lr for m in found), numbers.rate)),
    ]
    for index in range(n_trials):
        columns.append(Column(f"Trial {index + 1}", [_trial(m, index, summary, lost) for m in found], "rate: loss"))
    edges = [Cell(f"edge: {m.lr_at_edge}", m.lr_at_edge, kind="warning") if m.lr_at_edge else Cell("") for m in found]
    columns.append(Column("At the edge", edges, is_number=False))
    return Table("tuning", "Learning rates tried, and the lowest validation loss of each", columns)


def _all(summary: Summary) -> list[MethodSummary]:
    found = ordered(summary)
    return found + [method for method in summary.methods if method not in found]


def _badness(method: MethodSummary, lower_is_better: bool) -> float:
    if method.metric is None:
        return math.inf
    return method.metric.mean if lower_is_better else -method.metric.mean


def _kind(method: MethodSummary, summary: Summary) -> str:
    kind = words.mark_of(method, summary.study).word
    kind += f" of {method.against}" if method.against else ""
    return kind + (", equal budget" if method.role == "equal_budget" else "")


def _of_words(title: str, texts: list[str]) -> Column:
    return Column(title, cells.texts(texts), is_number=False)


def _metric(found: list[MethodSummary], summary: Summary, whose: str = "") -> Column:
    title = words.capital(words.metric(summary.study)) + whose
    unit = f"{words.unit(summary.study)}, ± s.d."
    return Column(title, cells.means([m.metric for m in found], words.factor(summary.study)), unit)


def _differences(title: str, found: list[Difference | None], summary: Summary) -> list[Column]:
    hint = "better or worse only if the interval excludes 0 after Holm's correction"
    return [
        Column(title, cells.intervals(found, words.factor(summary.study)), "95 % interval"),
        Column("Verdict", cells.verdicts(found), hint=hint, is_number=False),
    ]


def _note(member: BlockMember) -> Cell:
    if member.over_budget:
        return Cell("over the budget, not ranked", "over", kind="warning")
    return Cell("below 80 % of the budget, not ranked" if member.ratio < LEAST_RANKED else "", member.ratio)


def _rate(row: Row) -> float | None:
    """Of a trial."""
    if row.role != "tuning":
        return None
    return row.train.lr


def _trial(method: MethodSummary, index: int, summary: Summary, lost: Mapping[tuple[str, str], str]) -> Cell:
    trials = summary.tuning[method.key]
    if index >= len(trials):
        return Cell("")
    lr, loss = trials[index]
    rate = numbers.rate(lr)
    outcome = numbers.number(loss, 4) if loss is not None else lost.get((method.key, rate), "missing")
    return Cell(f"{rate}: {outcome}", loss, kind="chosen" if lr == method.lr else "")
