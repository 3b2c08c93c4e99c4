"""Statistics over seeds: means, differences paired by seed with t intervals, Holm's correction.

The difference d_i = x_i - y_i is taken seed by seed, because equal seeds saw equal batches. Its
interval and p value are those of Student's paired t test (`scipy.stats.ttest_1samp` of the
differences). All comparisons of a study are one family, so that many of them do not make one look
significant by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy.stats import ttest_1samp

LEVEL = 0.95
MIN_SEEDS = 3  # with fewer nothing is called better
BETTER = "better"
WORSE = "worse"
NO_DIFFERENCE = "no difference shown"
PRELIMINARY = "preliminary"
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Stats:
    """A value over the seeds that have it. `sd` is the sample standard deviation, None for one
    seed.
    """

    mean: float
    sd: float | None
    values: dict[int, float]  # by seed


@dataclass(frozen=True)
class Difference:
    """A method minus the method `to`, paired by seed.

    `low` and `high` are None for one pair, `p` and `p_holm` with fewer than three. `verdict`
    requires, besides the interval, that Holm's correction over the study's comparisons confirms it,
    and that no seed of the favored method failed; before the correction, where `p_holm` is None, it
    depends on the interval only.
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
    numbers = list(values.values())
    sd = stdev(numbers) if len(numbers) > 1 else None
    return Stats(fmean(numbers), sd, dict(values))


def compare(
    others: Mapping[str, str],
    values: Mapping[str, Mapping[int, float]],
    failed: set[str],
    lower_is_better: bool,
) -> dict[str, Difference]:
    """The difference of each method from its other one in `others`, with verdicts after Holm's
    correction over all.

    `values`: the metric by method and seed; a method that shares no seed with its other one has no
    difference. `failed`: the methods with a failed or diverged seed. Their other seeds are a
    favorable selection, so no verdict favors such a method.
    """
    pairs = {
        key: paired_difference(values[key], values[to], to, lower_is_better)
        for key, to in others.items()
    }
    differences = {key: pair for key, pair in pairs.items() if pair is not None}
    p_values = {key: pair.p for key, pair in differences.items() if pair.p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for key, difference in differences.items():
        verdict = difference.verdict
        p_holm = corrected.get(key)
        favored = {BETTER: key, WORSE: difference.to}.get(verdict)
        if favored in failed or (p_holm is not None and p_holm >= 1 - LEVEL):
            verdict = NO_DIFFERENCE
        differences[key] = replace(difference, p_holm=p_holm, verdict=verdict)
    return differences


def paired_difference(
    values: Mapping[int, float], others: Mapping[int, float], to: str, lower_is_better: bool
) -> Difference | None:
    """`values` minus `others` over the seeds that both have, before Holm's correction; None if they
    share no seed.

    Without any spread p is 1: an accuracy may differ by the same few examples with every seed,
    which is no evidence about other seeds.
    """
    differences = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    if not differences:
        return None
    n = len(differences)
    mean = fmean(differences)
    if n == 1:
        return Difference(to, mean, None, None, n, None, None, PRELIMINARY)
    low = high = mean
    p = 1.0
    if stdev(differences) > _ROUNDING * abs(mean):
        test = ttest_1samp(differences, 0.0)
        low, high = map(float, test.confidence_interval(LEVEL))  # pyright: ignore[reportAttributeAccessIssue]
        p = float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    if n < MIN_SEEDS:
        return Difference(to, mean, low, high, n, None, None, PRELIMINARY)
    is_better = (high < 0) == lower_is_better
    verdict = BETTER if is_better else WORSE
    if low <= 0 <= high:
        verdict = NO_DIFFERENCE
    return Difference(to, mean, low, high, n, p, None, verdict)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: a comparison stands if its value is below 1 -
    LEVEL.
    """
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(
        np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    ).clip(max=1.0)
    return adjusted[np.argsort(order)].tolist()
