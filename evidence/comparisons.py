"""Compare two adapters by the losses of each seed and block: section 2 of evidence/PROTOCOL.md.

Differences are in per cent of what LoRA gains in the same setup over the untrained base, so that a
mean over setups does not count a text more because its losses are larger. The gain itself is taken
as known: intervals do not contain its own variation.
"""

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
MARGIN = 2.0  # per cent of LoRA's gain: a smaller difference counts as none


class Paired(NamedTuple):
    """The mean of a difference, its standard error and degrees of freedom."""

    mean: float
    error: float
    df: int

    def interval(self, level: float = 1 - LEVEL) -> tuple[float, float]:
        reach = self.error * float(student.ppf((1 + level) / 2, self.df))
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


def compared(summary: Summary, ours: str, other: str) -> Paired:
    """The test loss of `ours` minus that of `other`, two keys, in per cent of LoRA's gain."""
    in_nats = difference(block_losses(summary[ours]), block_losses(summary[other]))
    return in_nats.times(100 / gain(summary))


def block_losses(result: Result) -> dict[int, Sequence[float]]:
    """By seed, the test loss of each block."""
    return {seed: row["test_losses"] for seed, row in result.successes.items()}


def gain(summary: Summary) -> float:
    """What the largest LoRA gains over the untrained base in test loss, in nats per token."""
    loras = [
        result
        for result in summary.results
        if result.method.method == "lora" and result.key.startswith("lora_")
    ]
    largest = max(loras, key=lambda result: result.method.trainable)
    return mean_loss(summary["none"]) - mean_loss(largest)


def mean_loss(result: Result) -> float:
    """The test loss, in nats per token, averaged over the seeds."""
    assert result.metric is not None
    return result.metric.mean


def difference(
    losses: Mapping[int, Sequence[float]], others: Mapping[int, Sequence[float]]
) -> Paired:
    """The losses minus the others, both those of the same blocks by seed, with the variation of
    seeds and of blocks.
    """
    seeds = sorted(losses.keys() & others.keys())
    table = np.array([np.subtract(losses[seed], others[seed]) for seed in seeds])  # (seeds, blocks)
    of_seeds = table.mean(1)
    of_blocks = table.mean(0)
    variance = of_seeds.var(ddof=1) / len(of_seeds) + of_blocks.var(ddof=1) / len(of_blocks)
    error = math.sqrt(variance) or 1e-12  # two adapters with equal losses have no error
    return Paired(float(table.mean()), error, len(seeds) - 1)


def mean(differences: Sequence[Paired]) -> Paired:
    """Of independent differences; with the fewest degrees of freedom, which makes intervals wider."""
    error = math.sqrt(sum(each.error**2 for each in differences)) / len(differences)
    fewest = min(each.df for each in differences)
    return Paired(fmean(each.mean for each in differences), error, fewest)


def verdicts(differences: Sequence[Paired], margin: float = MARGIN) -> Iterator[str]:
    """Each of one family of comparisons, after Holm's correction: equivalent, better, worse or
    open.

    "Equivalent" comes first: a difference that is shown may be smaller than the margin.
    """
    p_none = holm([each.p for each in differences])
    p_outside = holm([each.p_outside(margin) for each in differences])
    for each, none, outside in zip(differences, p_none, p_outside, strict=True):
        if outside < LEVEL:
            yield "equivalent"
        elif none < LEVEL:
            yield "better" if each.mean < 0 else "worse"
        else:
            yield "open"
