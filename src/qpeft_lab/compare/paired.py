"""Differences paired by seed and block of text, and decisions about them with a margin.

With n seeds and m blocks

    error^2 = variance of the seeds' means / n + variance of the blocks' means / m

and Student's t with n - 1 degrees of freedom. A family of decisions is corrected by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from qpeft.errors import ConfigError
from qpeft_lab.compare.stats import BETTER, LEVEL, WORSE, holm

EQUIVALENT = "equivalent"
UNDECIDED = "undecided"
POWER = 0.8  # with which a detectable difference is detected


class Paired(NamedTuple):
    """The mean of a difference, its standard error and degrees of freedom."""

    mean: float
    error: float
    df: int

    @classmethod
    def of(cls, table: np.ndarray) -> Paired:
        """Of differences (seeds, blocks). Raises ConfigError for one block, which has no variance."""
        n_seeds, n_blocks = table.shape
        if n_blocks < 2:
            raise ConfigError("a difference needs two blocks of test data or more, got one")
        of_seeds = table.mean(1).var(ddof=1) / n_seeds
        of_blocks = table.mean(0).var(ddof=1) / n_blocks
        error = math.sqrt(of_seeds + of_blocks) or 1e-12  # equal losses have no error
        return cls(float(table.mean()), error, n_seeds - 1)

    def interval(self) -> tuple[float, float]:
        """That of 95 %."""
        reach = self.error * float(student.ppf((1 + LEVEL) / 2, self.df))
        return self.mean - reach, self.mean + reach

    def times(self, factor: float) -> Paired:
        return Paired(self.mean * factor, self.error * factor, self.df)

    @property
    def p(self) -> float:
        """Of no difference."""
        return float(2 * student.sf(abs(self.mean) / self.error, self.df))

    def p_outside(self, margin: float) -> float:
        """Of a difference of `margin` or more in either direction: the larger of two one-sided
        tests.
        """
        return float(student.sf((margin - abs(self.mean)) / self.error, self.df))

    def detectable(self, n_questions: int) -> float:
        """The smallest true difference that is detected with a probability of 80 %, for the
        question of a family that Holm's correction treats most strictly.
        """
        strictest = (1 - LEVEL) / (2 * n_questions)
        quantiles = student.ppf(1 - strictest, self.df) + student.ppf(POWER, self.df)
        return self.error * float(quantiles)


class Decision(NamedTuple):
    """About one difference of a family, with its p values after Holm's correction."""

    decision: str  # equivalent, better, worse or undecided
    p_none: float
    p_outside: float


def decisions(differences: Sequence[Paired], margin: float) -> list[Decision]:
    """About the differences of one family; below 0 is better.

    "Equivalent" comes first: a difference that is shown may be smaller than the margin.
    """
    p_none = holm([each.p for each in differences])
    p_outside = holm([each.p_outside(margin) for each in differences])
    decided = []
    for each, none, outside in zip(differences, p_none, p_outside, strict=True):
        decision = UNDECIDED
        if outside < 1 - LEVEL:
            decision = EQUIVALENT
        elif none < 1 - LEVEL:
            decision = BETTER if each.mean < 0 else WORSE
        decided.append(Decision(decision, none, outside))
    return decided
