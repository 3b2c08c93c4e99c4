"""Statistics over seeds: means, differences paired by seed with t intervals, Holm's correction.

The difference d_i = x_i - y_i is taken seed by seed, because equal seeds saw equal batches. Its interval and p value
are those of Student's paired t test (`scipy.stats.ttest_1samp` of the differences). All comparisons of a study are one
family, so that many of them do not make one look significant by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from scipy.stats import ttest_1samp

LEVEL = 0.95
MIN_SEEDS = 3  # with fewer nothing is called better
BETTER, WORSE, NO_DIFFERENCE, PRELIMINARY = "better", "worse", "no difference shown", "preliminary"
_ROUNDING = 1e-12

Pair = tuple[str, str]  # a method's key and the key of the method it is compared with


@dataclass(frozen=True)
class Stats:
    """A value over the seeds that have it. `sd` is the sample standard deviation, None for one seed."""

    mean: float
    sd: float | None
    values: dict[int, float]  # by seed

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """A method minus the method `to`, paired by seed.

    `low` and `high` are None for one pair, `p` and `p_holm` with fewer than three. `verdict` requires, besides the
    interval, that Holm's correction over the study's comparisons confirms it, and that no seed of the favored method
    failed; before the correction, where `p_holm` is None, it depends on the interval only.
    """

    to: str
    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None
    verdict: str


def describe(values: Mapping[int, float]) -> Stats | None:
    """Mean and sample standard deviation of the values by seed; None if there are none."""
    if not values:
        return None
    found = list(values.values())
    return Stats(fmean(found), stdev(found) if len(found) > 1 else None, dict(values))


def compare(
    pairs: Sequence[Pair], values: Mapping[str, Mapping[int, float]], failed: set[str], lower_is_better: bool
) -> dict[Pair, Difference]:
    """The difference of every pair that shares a seed, with verdicts after Holm's correction over all of them.

    `values`: the metric by method and seed. `failed`: the methods with a failed or diverged seed. Their other seeds are
    a favorable selection, so no verdict favors such a method.
    """
    found = {
        (key, to): difference
        for key, to in dict.fromkeys(pairs)
        if (difference := paired_difference(values[key], values[to], to, lower_is_better)) is not None
    }
    # a pair and its reverse are the same question and count once
    p_values = {frozenset(pair): difference.p for pair, difference in found.items() if difference.p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {pair: _with_verdict(pair, d, corrected.get(frozenset(pair)), failed) for pair, d in found.items()}


def paired_difference(
    values: Mapping[int, float], others: Mapping[int, float], to: str, lower_is_better: bool
) -> Difference | None:
    """`values` minus `others` over the seeds that both have, before Holm's correction; None if they share no seed."""
    differences = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    if not differences:
        return None
    n, mean = len(differences), fmean(differences)
    low, high, p = _t_test(differences, mean)
    verdict = _verdict(low, high, n, lower_is_better)
    return Difference(to, mean, low, high, n, p if n >= MIN_SEEDS else None, None, verdict)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: a comparison stands if its value is below 1 - LEVEL."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _t_test(differences: Sequence[float], mean: float) -> tuple[float | None, float | None, float | None]:
    """Interval and two-sided p value of the mean; None for one difference.

    Without any spread p is 1: an accuracy may differ by the same few examples with every seed, which is no
    evidence about other seeds.
    """
    if len(differences) < 2:
        return None, None, None
    if stdev(differences) <= _ROUNDING * abs(mean):
        return mean, mean, 1.0
    test = ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _with_verdict(pair: Pair, difference: Difference, p_holm: float | None, failed: set[str]) -> Difference:
    verdict = difference.verdict
    if p_holm is not None and p_holm >= 1 - LEVEL:
        verdict = NO_DIFFERENCE
    if {BETTER: pair[0], WORSE: pair[1]}.get(verdict) in failed:
        verdict = NO_DIFFERENCE
    return replace(difference, p_holm=p_holm, verdict=verdict)


def _verdict(low: float | None, high: float | None, n: int, lower_is_better: bool) -> str:
    if n < MIN_SEEDS or low is None or high is None:
        return PRELIMINARY
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return BETTER if (high < 0) == lower_is_better else WORSE
