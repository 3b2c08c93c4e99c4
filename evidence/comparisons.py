"""Compare two adapters by the losses of each seed and block: section 2 of evidence/PROTOCOL.md.

Differences are in per cent of what LoRA gains in the same setup over the untrained base, so that a
mean over setups does not count a text more because its losses are larger. The gain itself is taken
as known: intervals do not contain its own variation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from qpeft_lab.compare.paired import Paired, decisions
from qpeft_lab.compare.summary import Result, Summary

MARGIN = 2.0  # per cent of LoRA's gain: a smaller difference counts as none


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
    return Paired.of(table)


def mean(differences: Sequence[Paired]) -> Paired:
    """Of independent differences; with the fewest degrees of freedom, which makes intervals wider."""
    error = math.sqrt(sum(each.error**2 for each in differences)) / len(differences)
    fewest = min(each.df for each in differences)
    return Paired(fmean(each.mean for each in differences), error, fewest)


def verdicts(differences: Sequence[Paired], margin: float = MARGIN) -> Iterator[str]:
    """Each of one family of comparisons, after Holm's correction: equivalent, better, worse or
    undecided.
    """
    for decided in decisions(differences, margin):
        yield decided.decision
