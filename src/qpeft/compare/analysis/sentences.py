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
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.rows import Row

_METRICS = {  # unit, factor, decimals
    "test_loss": ("nats", 1, 3),
    "test_accuracy": ("percentage points", 100, 1),
    "bleu": ("BLEU points", 1, 1),
}


def sentence(method: MethodSummary, summary: Summary) -> str:
    """The result of `method`, compared with the reference or, in an equal-budget block, with the block's method."""
    return capital(_answer(method, summary)) + _lost(method)


def headlines_of(summary: Summary) -> list[str]:
    """For each method with controls: how many of them are not shown to be worse."""
    found = []
    for method in summary.methods:
        judged = [m for m in summary.methods if m.against == method.key and m.difference_to_target is not None]
        judged = [m for m in judged if m.difference_to_target and m.difference_to_target.verdict != PRELIMINARY]
        if not judged:
            continue
        as_good = [m for m in judged if m.difference_to_target and m.difference_to_target.verdict != WORSE]
        if not as_good:
            found.append(f"{capital(method.label)} is better than all of its {_count(len(judged), 'control')}.")
            continue
        names = "; ".join(f"{m.label} ({_against(m, summary)})" for m in as_good)
        n = f"{len(as_good)} of its {_count(len(judged), 'control')}"
        found.append(f"{capital(method.label)} is not shown to be better than {n}: {names}.")
    return found


def _against(control: MethodSummary, summary: Summary) -> str:
    """ "0.016 nats per token below", and "better" where that is shown."""
    found = control.difference_to_target
    assert found is not None
    return f"{_distance(found, summary).removesuffix(' to')}{', better' if found.verdict == BETTER else ''}"


def _answer(method: MethodSummary, summary: Summary) -> str:
    if method.metric is None:
        return f"{method.label} has no result{'.' if method.has_failures else ' yet.'}"
    found = method.difference or _block_difference(method, summary)
    if found is not None:
        return _compared(method, found, summary)
    ends = f"ends at {quantity(method.metric.mean, summary)} ({_over_seeds(method, summary)})"
    if method.key == summary.study.reference:
        return f"{method.label}, the reference, {ends}."
    return f"{method.label} {ends}; there is no result yet to compare it with."


def _compared(method: MethodSummary, found: Difference, summary: Summary) -> str:
    other = summary[found.to]
    evidence = _evidence(found, summary)
    if found.verdict == NO_DIFFERENCE:
        where = f"{method.label} ends {_distance(found, summary)}"
        why = _why_not(found, method, other, summary)
        return f"No difference from {other.label} is shown: {where} ({evidence}) {_share(method, other)}{why}."
    start = f"Preliminary, {_count(found.n, 'seed')} only: " if found.verdict == PRELIMINARY else ""
    where = f"{method.label} ends {_distance(found, summary)} {other.label}"
    return f"{start}{where} ({evidence}) {_share(method, other)}."


def quantity(value: float, summary: Summary) -> str:
    """A value of the study's metric with its unit: "3.412 nats per token", "91.2 %"."""
    unit, factor, decimals = _METRICS[summary.study.metric]
    number = f"{value * factor:.{decimals}f}"
    if unit == "percentage points":
        return f"{number} %"
    return f"{number} {unit}{_per_token(summary)}"


def _distance(found: Difference, summary: Summary) -> str:
    """ "0.042 nats per token above", before the other's name or alone."""
    if found.mean == 0:
        return "exactly equal" if found.verdict == NO_DIFFERENCE else "exactly equal to"
    unit, factor, _ = _METRICS[summary.study.metric]
    number = f"{abs(found.mean) * factor:.{_decimals(found, summary)}f}"
    return f"{number} {unit}{_per_token(summary)} {'above' if found.mean > 0 else 'below'}"


def _evidence(found: Difference, summary: Summary) -> str:
    """The interval in the direction of the mean, and how many seeds agree with it."""
    if found.mean == 0:
        seeds = f"{found.same_sign} of {_count(found.n, 'seed')} equal"
    else:
        seeds = f"{found.same_sign} of {_count(found.n, 'seed')} {_side(found, summary)}"
    if found.low is None or found.high is None:
        return seeds
    factor = _METRICS[summary.study.metric][1]
    low, high = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    decimals = _decimals(found, summary)
    return f"95 % interval {low * factor:.{decimals}f} to {high * factor:.{decimals}f}, {seeds}"


def _side(found: Difference, summary: Summary) -> str:
    return BETTER if (found.mean < 0) == summary.lower_is_better else WORSE


def _decimals(found: Difference, summary: Summary) -> int:
    """Enough for two digits of a small difference."""
    _, factor, usual = _METRICS[summary.study.metric]
    exponent = int(f"{found.mean * factor:.1e}".partition("e")[2])
    return min(9, max(usual, 1 - exponent)) if found.mean else usual


def _share(method: MethodSummary, other: MethodSummary) -> str:
    if method.trainable == 0:
        return "without training" if method.lr is None else "by training the task's head only"
    if other.trainable == 0:
        return f"with {method.trainable:,} trainable parameters"
    ratio = method.trainable / other.trainable
    if round(ratio, 2) == 1:
        return "with as many trainable parameters"
    if round(ratio, 2) == 0.5:
        return "with half as many trainable parameters"
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


def _over_seeds(method: MethodSummary, summary: Summary) -> str:
    assert method.metric is not None
    if method.metric.sd is None:
        return "one seed"
    return f"s.d. {quantity(method.metric.sd, summary).split()[0]} over {_count(method.metric.n, 'seed')}"


def _lost(method: MethodSummary) -> str:
    lost = Counter(status for status in method.statuses.values() if status != "success")
    if not lost:
        return ""
    words = " and ".join(f"{count} {_became(status, count)}" for status, count in sorted(lost.items()))
    return f" Of its {_count(len(method.statuses), 'seed')} {words}."


def _became(status: str, count: int) -> str:
    if status in ("missing", "skipped"):
        return f"{'is' if count == 1 else 'are'} {status}"
    return {"oom": "ran out of memory", "timeout": "exceeded the time limit"}.get(status, status)


def _block_difference(method: MethodSummary, summary: Summary) -> Difference | None:
    members = (member for block in summary.blocks for member in block.members if member.key == method.key)
    return next((member.difference for member in members if member.difference is not None), None)


def _per_token(summary: Summary) -> str:
    is_lm = summary.study.is_language_model and summary.study.metric == "test_loss"
    return " per token" if is_lm else ""


def capital(text: str) -> str:
    """The text with its first letter in upper case; the others stay: BLEU."""
    return text[:1].upper() + text[1:]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def flags_of(
    method: MethodSummary, trials: Sequence[tuple[float, Row | None]], untrained: float | None, lower_is_better: bool
) -> list[str]:
    """Short remarks for the method's table row. `untrained`: the metric of the base itself."""
    flags = []
    if untrained is not None and method.metric is not None and method.lr is not None:
        values = method.metric.values.values()
        if all(value > untrained if lower_is_better else value < untrained for value in values):
            flags.append("worse than the untrained base with every seed")
    if method.lr_at_edge is not None:
        flags.append(f"edge: its best learning rate is the {method.lr_at_edge}est of its grid")
    if method.metric is not None and method.metric.n < MIN_SEEDS:
        flags.append(f"preliminary: {_count(method.metric.n, 'seed')}")
    lost = Counter(status for status in method.statuses.values() if status != "success")
    flags += [f"{count} {status}" for status, count in sorted(lost.items())]
    ended = sum(row is not None and row.status in ("success", "diverged") for _, row in trials)
    if trials and all(row is not None and not row.succeeded for _, row in trials):
        flags.append("no learning rate succeeded")
    elif trials and ended < sum(row is not None for _, row in trials):
        flags.append(f"{ended} of {len(trials)} learning rates tried to the end")
    return flags
