"""The results of a study as sentences: one for each method with its interval, and the flags of its table row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qpeft.compare.analysis.statistics import (
    BETTER,
    MIN_SEEDS,
    NO_DIFFERENCE,
    PRELIMINARY,
    WORSE,
    Difference,
)
from qpeft.compare.analysis.types import Block, MethodSummary, Summary
from qpeft.compare.metrics import METRICS
from qpeft.compare.rows import Row
from qpeft.compare.study import is_ranked

_RELATIONS = {
    BETTER: ("better", "than"),
    NO_DIFFERENCE: ("not shown to differ", "from"),
    WORSE: ("worse", "than"),
    PRELIMINARY: (f"without a verdict with fewer than {MIN_SEEDS} seeds", "compared with"),
}
_MOST_NAMED, _FIRST_NAMED = 20, 8  # of more methods with one verdict only the first ones are named
NOT_IMPROVED = "not improve on the base: the best step is 0 with every seed"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def capital(text: str) -> str:
    """The text with its first letter in upper case; the others stay: BLEU."""
    return text[:1].upper() + text[1:]


def sentence(method: MethodSummary, summary: Summary) -> str:
    """The result of `method`, compared with the reference or, in an equal-budget block, with the block's method."""
    lost = f" Of its {plural(len(method.statuses), 'seed')}: {_lost(method)}." if _lost(method) else ""
    if not method.has_improved:
        lost = f" It did {NOT_IMPROVED}, and its results are those before training.{lost}"
    if method.lr_at_edge is not None:
        lost += f" Its learning rate {method.lr:g} is the {method.lr_at_edge}est of those tried: another may be better."
    return capital(_result(method, summary)) + lost


def headlines_of(summary: Summary) -> list[str]:
    """The answer to the study's question: first what the study is about, comparisons or controls.

    It is about controls if most of its trained methods have some, and about sizes if the reference has an equal-budget
    block: then the comparisons at all sizes are the first text.
    """
    blocks = [_compared_in(block, summary) for block in summary.blocks]
    with_reference = [_compared_with_reference(summary), _scores(summary)]
    is_about_sizes = any(block.of == summary.study.reference for block in summary.blocks)
    at_all_sizes = " ".join(filter(None, blocks))
    compared = [at_all_sizes, *with_reference] if is_about_sizes else [*with_reference, *blocks]
    controls = [_all_controls(summary), *(_controls_of(method, summary) for method in summary.methods)]
    n_trained = sum(method.role == "main" and method.is_trained for method in summary.methods)
    n_controlled = len({method.against for method in summary.methods if method.role == "control"})
    is_about_controls = 2 * n_controlled > n_trained
    answer = [*controls, *compared] if is_about_controls else [*compared, *controls]
    return [text for text in (*answer, edges(summary)) if text]


def edges(summary: Summary) -> str:
    """The methods whose tuning ended at an edge; empty if there are none."""
    found = dict.fromkeys(_in_list(method.label) for method in summary.methods if method.lr_at_edge is not None)
    return f"A learning rate outside those tried may be better for {_named([*found])}." if found else ""


def _named(labels: Sequence[str]) -> str:
    """ "A, B and C"; of many labels the first ones."""
    if len(labels) > _MOST_NAMED:
        labels = [*labels[:_FIRST_NAMED], f"{len(labels) - _FIRST_NAMED} others"]
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def _rivals(summary: Summary) -> list[MethodSummary]:
    """The trained main methods except for the reference, best first."""
    return [m for m in summary.ordered if m.role == "main" and m.is_trained and m.key != summary.study.reference]


def _compared_with_reference(summary: Summary) -> str:
    return _verdicts([(m, m.difference) for m in _rivals(summary)], summary.study.reference, summary)


def _scores(summary: Summary) -> str:
    """BLEU of the generated texts, if there are some and the study's metric is another one."""
    bleu = METRICS["bleu"]
    found = {m.label: m.measurements.get("quality.bleu") for m in summary.methods if m.role == "main"}
    known = sorted(((label, stats.mean) for label, stats in found.items() if stats), key=lambda one: -one[1])
    if not known or summary.metric is bleu:
        return ""
    return f"BLEU of the generated texts: {', '.join(f'{_in_list(label)} {mean:.1f}' for label, mean in known)}."


def _compared_in(block: Block, summary: Summary) -> str:
    """The ranked members of an equal-budget block."""
    members = {member.key: member for member in block.members if is_ranked(member.ratio)}
    rivals = [(m, members[m.key].difference) for m in summary.by_quality if m.key in members]
    found = _verdicts(rivals, block.of, summary)
    start = f"With 80 to 100 % of the {block.budget:,} trainable parameters of {summary[block.of].label}"
    return found and f"{start}: {found}"


def _verdicts(found: Sequence[tuple[MethodSummary, Difference | None]], to: str, summary: Summary) -> str:
    """One sentence: which methods are better than the method `to`, not shown to differ, worse; the best first."""
    factor, decimals = summary.metric.factor, summary.metric.decimals

    def value(method: MethodSummary) -> str:
        return f"{method.metric.mean * factor:.{decimals}f}" if method.metric else ""

    clauses = []
    for verdict, (relation, preposition) in _RELATIONS.items():
        chosen = [m for m, difference in found if difference and difference.verdict == verdict]
        if not chosen:
            continue
        labels = [f"{_in_list(m.label)} ({value(m)})" for m in chosen]
        verb = "is" if len(labels) == 1 else "are"
        clause = f"{_named(labels)} {verb} {relation}"
        if not clauses:  # the other is named once
            clause += f" {preposition} {summary[to].label} ({value(summary[to])} {summary.metric.unit})"
        clauses.append(clause)
    return f"{capital('; '.join(clauses))}." if clauses else ""


def _in_list(label: str) -> str:
    """In quotation marks if the label itself has a comma."""
    return f'"{label}"' if "," in label else label


def _judged(method: MethodSummary, summary: Summary) -> list[tuple[MethodSummary, Difference]]:
    """The controls of the method that have a verdict."""
    controls = [(m, m.difference_to_target) for m in summary.methods if m.against == method.key]
    return [(m, d) for m, d in controls if d is not None and d.verdict != PRELIMINARY]


def _all_controls(summary: Summary) -> str:
    """The verdicts of all controls, if several methods have some."""
    found = [judged for method in summary.methods if (judged := _judged(method, summary))]
    verdicts = Counter(difference.verdict for judged in found for _, difference in judged)
    if len(found) < 2:
        return ""
    n_worse = verdicts[WORSE]
    worse = f"{n_worse} {'is worse than its method' if n_worse == 1 else 'are worse than their methods'}"
    n_equal = f"for {verdicts[NO_DIFFERENCE]} no difference is shown"
    return f"Of {verdicts.total()} controls, {worse}, {verdicts[BETTER]} better, and {n_equal}."


def _controls_of(method: MethodSummary, summary: Summary) -> str:
    """How many controls of the method are not shown to be worse."""
    judged = _judged(method, summary)
    if not judged:
        return ""
    as_good = [
        f"{m.label} ({_distance(d, summary).removesuffix(' to')}{', better' if d.verdict == BETTER else ''})"
        for m, d in judged
        if d.verdict != WORSE
    ]
    start, n = capital(method.label), len(judged)
    if not as_good:
        return (
            f"{start} is better than {f'all of its {n} controls' if n > 1 else f'its control, {judged[0][0].label}'}."
        )
    few = f"{len(as_good)} of its {n} controls" if n > 1 else "its control"
    return f"{start} is not shown to be better than {few}: {'; '.join(as_good)}."


def flags_of(
    method: MethodSummary, trials: Sequence[tuple[float, Row | None]], untrained: float | None, lower_is_better: bool
) -> list[str]:
    """Short remarks for the method's table row. `untrained`: the metric of the base itself."""
    flags = []
    if not method.has_improved:
        flags.append(f"did {NOT_IMPROVED}")
    elif method.unimproved:
        flags.append(f"no improvement with {method.unimproved} of {plural(method.ok, 'seed')}: the best step is 0")
    if untrained is not None and method.metric is not None and method.lr is not None:
        values = method.metric.values.values()
        if all(value > untrained if lower_is_better else value < untrained for value in values):
            flags.append("worse than the untrained base with every seed")
    if method.metric is not None and method.metric.n < MIN_SEEDS:
        flags.append(f"preliminary: {plural(method.metric.n, 'seed')}")
    if _lost(method):
        flags.append(_lost(method))
    tried = [row for _, row in trials if row is not None]
    ended = sum(row.status in ("success", "diverged") for row in tried)
    if trials and len(tried) == len(trials) and not any(row.succeeded for row in tried):
        flags.append("no learning rate succeeded")
    elif ended < len(tried):
        flags.append(f"{ended} of {len(trials)} learning rates tried to the end")
    return flags


def _lost(method: MethodSummary) -> str:
    """ "1 diverged, 2 missing"."""
    lost = Counter(status for status in method.statuses.values() if status != "success")
    return ", ".join(f"{n} {status}" for status, n in sorted(lost.items()))


def _result(method: MethodSummary, summary: Summary) -> str:
    if method.metric is None:
        return f"{method.label} has no result{'.' if method.has_failures else ' yet.'}"
    in_blocks = (member.difference for block in summary.blocks for member in block.members if member.key == method.key)
    found = method.difference or next((difference for difference in in_blocks if difference is not None), None)
    if found is not None:
        return _compared(method, found, summary)
    shown, n = summary.metric, method.metric.n
    mean, sd = (f"{value * shown.factor:.{shown.decimals}f}" for value in (method.metric.mean, method.metric.sd or 0.0))
    seeds = "one seed" if method.metric.sd is None else f"s.d. {sd} over {plural(n, 'seed')}"
    ends = f"ends at {mean} {shown.unit} ({seeds})"
    if method.key == summary.study.reference:
        return f"{method.label}, the reference, {ends}."
    return f"{method.label} {ends}; there is no result yet to compare it with."


def _compared(method: MethodSummary, found: Difference, summary: Summary) -> str:
    other = summary[found.to]
    where, evidence = f"{method.label} ends {_distance(found, summary)}", f"({_evidence(found, summary)})"
    if found.verdict == NO_DIFFERENCE:
        why = _why_not(found, method, other, summary)
        return f"No difference from {other.label} is shown: {where} {evidence} {_share(method, other)}{why}."
    start = f"Preliminary, {plural(found.n, 'seed')} only: " if found.verdict == PRELIMINARY else ""
    return f"{start}{where} {other.label} {evidence} {_share(method, other)}."


def _distance(found: Difference, summary: Summary) -> str:
    """ "0.042 nats per token above", before the other's name or alone."""
    if found.mean == 0:
        return "exactly equal" if found.verdict == NO_DIFFERENCE else "exactly equal to"
    number = f"{abs(found.mean) * summary.metric.factor:.{_decimals(found, summary)}f}"
    return f"{number} {summary.metric.difference_unit} {'above' if found.mean > 0 else 'below'}"


def _evidence(found: Difference, summary: Summary) -> str:
    """The interval in the direction of the mean, and how many seeds agree with it."""
    side = BETTER if (found.mean < 0) == summary.lower_is_better else WORSE
    seeds = f"{found.same_sign} of {plural(found.n, 'seed')} {side if found.mean else 'equal'}"
    if found.low is None or found.high is None:
        return seeds
    low, high = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    factor, decimals = summary.metric.factor, _decimals(found, summary)
    return f"95 % interval {low * factor:.{decimals}f} to {high * factor:.{decimals}f}, {seeds}"


def _decimals(found: Difference, summary: Summary) -> int:
    """Enough for two digits of a small difference."""
    exponent = int(f"{found.mean * summary.metric.factor:.1e}".partition("e")[2])
    return min(9, max(summary.metric.decimals, 1 - exponent)) if found.mean else summary.metric.decimals


def _share(method: MethodSummary, other: MethodSummary) -> str:
    if method.trainable == 0:
        return "without training" if method.lr is None else "by training the task's head only"
    if other.trainable == 0:
        return f"with {method.trainable:,} trainable parameters"
    ratio = method.trainable / other.trainable
    if known := {1.0: "as", 0.5: "half as"}.get(round(ratio, 2)):
        return f"with {known} many trainable parameters"
    if ratio < 1:
        percent = 100 * ratio
        return f"with {percent:{'.2g' if percent < 10 else '.0f'}} % as many trainable parameters"
    return f"with {ratio:{'.3g' if ratio < 10 else ',.0f'}} times as many trainable parameters"


def _why_not(found: Difference, method: MethodSummary, other: MethodSummary, summary: Summary) -> str:
    """Why an interval that excludes 0 is not enough."""
    if found.verdict_alone == NO_DIFFERENCE:
        return ""
    favored = method if found.verdict_alone == BETTER else other
    if favored.has_failures:
        return f"; seeds of {favored.label} failed, so no verdict favors it"
    return f"; the interval excludes 0, but not after Holm's correction over {summary.n_comparisons} comparisons"
