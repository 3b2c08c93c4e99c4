"""What seeds allow to be said: means, differences paired by seed, t intervals, Holm's correction.

The difference d_i = x_i - y_i is taken seed by seed, because equal seeds saw equal batches. With n seeds its 95 %
interval is mean(d) -+ t sd(d) / sqrt(n), where sd divides by n - 1 and t is Student's 97.5 % quantile with n - 1
degrees of freedom: 4.303 for three seeds, 2.776 for five.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
_ROUNDING = 1e-12
MIN_SEEDS = 3  # with fewer nothing is ranked and nothing is called better
BETTER, WORSE, NO_DIFFERENCE, PRELIMINARY = "better", "worse", "no difference shown", "preliminary"


@dataclass(frozen=True)
class Stats:
    """A figure over the seeds that have it; `sd` is the sample standard deviation, None for one seed."""

    mean: float
    sd: float | None
    values: dict[int, float]  # by seed

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """A method minus the method `to`, paired by seed.

    `low` and `high` are None for one pair, `p` and `p_holm` with fewer than three. `same_sign` counts the seeds whose
    difference has the sign of the mean. `verdict_alone` goes by this interval only; `verdict` also asks that Holm's
    correction over the study's comparisons upholds it, and that the favoured side lost no seed to a failure.
    """

    to: str
    mean: float
    low: float | None
    high: float | None
    n: int
    same_sign: int
    p: float | None
    p_holm: float | None
    verdict_alone: str
    verdict: str


def describe(values: Mapping[int, float]) -> Stats | None:
    """Mean and sample standard deviation of the values by seed; None if there are none."""
    if not values:
        return None
    mean = math.fsum(values.values()) / len(values)
    return Stats(mean, _sample_sd(list(values.values()), mean), dict(values))


def paired_difference(
    values: Mapping[int, float], others: Mapping[int, float], to: str, lower_is_better: bool
) -> Difference | None:
    """`values` minus `others` over the seeds that both have, before Holm's correction; None if they share no seed."""
    differences = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    if not differences:
        return None
    n = len(differences)
    mean = math.fsum(differences) / n
    low, high = t_interval(differences)
    p = two_sided_p(differences) if n >= MIN_SEEDS else None
    same_sign = sum(_sign(difference) == _sign(mean) for difference in differences)
    verdict = _verdict(low, high, n, lower_is_better)
    return Difference(to, mean, low, high, n, same_sign, p, None, verdict, verdict)


def t_interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """The interval of the mean of `differences`; (None, None) for fewer than two."""
    n = len(differences)
    mean = math.fsum(differences) / n
    sd = _sample_sd(differences, mean)
    if sd is None:
        return None, None
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * sd / math.sqrt(n)
    return mean - half, mean + half


def two_sided_p(differences: Sequence[float]) -> float:
    """P(|T| >= |t|) for the mean of two or more `differences`; 1 without any spread, which no t test can judge.

    An accuracy may differ by the same few examples with every seed; that says nothing of other seeds.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    sd = _sample_sd(differences, mean)
    if sd is None or sd <= _ROUNDING * abs(mean):
        return 1.0
    return float(2 * stdtr(n - 1, -abs(mean) / sd * math.sqrt(n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: a comparison stands if its value is below 1 - LEVEL."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _sample_sd(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    if all(value == values[0] for value in values):
        return 0.0  # the rounding of the mean must not make a spread
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _verdict(low: float | None, high: float | None, n: int, lower_is_better: bool) -> str:
    if n < MIN_SEEDS or low is None or high is None:
        return PRELIMINARY
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return BETTER if (high < 0) == lower_is_better else WORSE
