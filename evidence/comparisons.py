"""Compare two adapters by the losses of each seed and block: section 2 of evidence/PROTOCOL.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from qpeft_lab.compare.stats import holm
from qpeft_lab.compare.summary import Result, Summary

LEVEL = 0.05
MARGIN = 0.02  # of LoRA's gain: a smaller difference is none


def compared(one: Result, other: Result) -> Paired:
    """The test loss of `one` minus that of `other`."""
    losses = [
        {seed: row["test_losses"] for seed, row in found.successes.items()}
        for found in (one, other)
    ]
    return difference(*losses)


def margin(summary: Summary) -> float:
    """A share of what the largest LoRA gains over the untrained base, in nats per token."""
    loras = [
        found
        for found in summary.results
        if found.method.method == "lora" and found.key.startswith("lora_")
    ]
    losses = [
        one.mean("test_loss") or 0
        for one in (summary["none"], max(loras, key=lambda one: one.method.trainable))
    ]
    return MARGIN * (losses[0] - losses[1])


class Paired(NamedTuple):
    """The mean of a difference in nats per token, its standard error and degrees of freedom."""

    mean: float
    error: float
    df: int

    def interval(self, level: float = 1 - LEVEL) -> tuple[float, float]:
        reach = self.error * float(student.ppf((1 + level) / 2, self.df))
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Of no difference."""
        return float(2 * student.sf(abs(self.mean) / self.error, self.df))

    def p_outside(self, margin: float) -> float:
        """Of a difference of `margin` or more in either direction: the larger of two one-sided
        tests.
        """
        return float(student.sf((margin - abs(self.mean)) / self.error, self.df))


def difference(
    losses: Mapping[int, Sequence[float]], others: Mapping[int, Sequence[float]]
) -> Paired:
    """The losses minus the others, both those of the same blocks by seed, with the variation of
    seeds and of blocks.
    """
    found = np.array(
        [np.subtract(losses[seed], others[seed]) for seed in sorted(losses.keys() & others.keys())]
    )
    seeds, blocks = found.mean(1), found.mean(0)
    error = math.sqrt(seeds.var(ddof=1) / len(seeds) + blocks.var(ddof=1) / len(blocks))
    return Paired(
        float(found.mean()), error or 1e-12, len(seeds) - 1
    )  # two adapters with equal losses have no error


def mean(differences: Sequence[Paired]) -> Paired:
    """Of independent differences; with the fewest degrees of freedom, which makes intervals wider."""
    error = math.sqrt(sum(one.error**2 for one in differences)) / len(differences)
    return Paired(fmean(one.mean for one in differences), error, min(one.df for one in differences))


def verdicts(differences: Sequence[Paired], margins: Sequence[float]) -> Iterator[str]:
    """Each of one family of comparisons, after Holm's correction: equivalent, better, worse or
    open.

    "Equivalent" comes first: a difference that is shown may be smaller than the margin.
    """
    shown = holm([one.p for one in differences])
    inside = holm([one.p_outside(margin) for one, margin in zip(differences, margins, strict=True)])
    for one, p, p_outside in zip(differences, shown, inside, strict=True):
        sign = "better" if one.mean < 0 else "worse"
        yield "equivalent" if p_outside < LEVEL else sign if p < LEVEL else "open"
