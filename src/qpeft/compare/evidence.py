"""The evidence behind `qpeft.suggest`: losses of many adapters in several setups, by seed, as measured by a study.

`evidence.json` is made from a study's rows by `benchmarks/evidence.py`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from pydantic import BaseModel, ConfigDict

from qpeft.compare.analysis.statistics import BETTER, Stats, describe, paired_difference
from qpeft.files import parse_json

FILE = "evidence.json"
LR_MARGIN = 0.05  # of the gain


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setup(_Part):
    """A base and a text, with the mean losses of the base as it is, and the mean test loss of the reference."""

    base: str
    base_parameters: int
    data: str
    steps: int
    untrained: float
    untrained_valid: float  # validation loss
    reference: float


class Result(_Part):
    """What a design reached in a setup: test losses in nats per token by seed, at the learning rate chosen there.

    `tuning` has the validation losses of one other seed by learning rate, None where it failed.
    """

    trainable: int
    lr: float
    losses: dict[int, float]
    tuning: dict[float, float | None]

    @property
    def stats(self) -> Stats:
        """Mean and interval over the seeds."""
        found = describe(self.losses)
        assert found is not None
        return found


class Design(_Part):
    """A method with its settings, and its results in the order of the setups."""

    key: str
    label: str
    method: str
    settings: dict[str, Any]
    results: list[Result]


class Evidence(_Part):
    """Designs that were measured in the same setups."""

    study: str
    made_by: str  # the command
    reference: str  # whose gain is 1
    setups: list[Setup]
    designs: list[Design]

    def of_base(self, parameters: int) -> Evidence:
        """The results on the base with so many parameters; all results if it is not among them."""
        kept = [index for index, setup in enumerate(self.setups) if setup.base_parameters == parameters]
        if not kept:
            return self
        designs = [d.model_copy(update={"results": [d.results[index] for index in kept]}) for d in self.designs]
        return self.model_copy(update={"setups": [self.setups[index] for index in kept], "designs": designs})

    def shares(self, design: Design) -> list[float]:
        """By setup: the gain in test loss over the untrained base, as a share of the reference's gain."""
        return [
            (setup.untrained - result.stats.mean) / (setup.untrained - setup.reference)
            for setup, result in zip(self.setups, design.results, strict=True)
        ]

    def learning_rate(self, design: Design) -> float:
        """The largest learning rate that is safe in all setups.

        In a setup, a learning rate costs the share of the gain in validation loss that the tuning run with it, or with
        the next higher one that was tried, loses to the best one. A learning rate is safe if its highest cost over the
        setups is within LR_MARGIN of the lowest possible.
        """
        by_setup = [_costs(*both) for both in zip(self.setups, design.results, strict=True)]
        tried = set.intersection(*({*costs} for costs in by_setup))
        highest = {rate: max(costs[rate] for costs in by_setup) for rate in tried}
        return max(rate for rate, cost in highest.items() if cost <= min(highest.values()) + LR_MARGIN)

    def ranked(self) -> list[Design]:
        """The designs by their mean share over the setups, the best first."""
        return sorted(self.designs, key=lambda design: (-fmean(self.shares(design)), design.key))


def _costs(setup: Setup, result: Result) -> dict[float, float]:
    """By learning rate, without the highest: the share of the gain that it, or the next higher one, loses."""
    best = min(loss for loss in result.tuning.values() if loss is not None)
    lost = {
        rate: 1.0 if loss is None else (loss - best) / (setup.untrained_valid - best)
        for rate, loss in sorted(result.tuning.items())
    }
    if _has_failed_seed(setup, result):
        lost |= {rate: 1.0 for rate in lost if rate >= result.lr}
    return {rate: max(lost[rate], lost[higher]) for rate, higher in pairwise(lost)}


def _has_failed_seed(setup: Setup, result: Result) -> bool:
    """Whether a seed gained less than half as much as the median seed."""
    gains = [setup.untrained - loss for loss in result.losses.values()]
    return min(gains) < median(gains) / 2


def is_better(one: Design, other: Design) -> bool:
    """Whether `one` has a lower loss in every setup: the 95 % interval of the paired difference excludes 0."""
    differences = (
        paired_difference(a.losses, b.losses, other.key, lower_is_better=True)
        for a, b in zip(one.results, other.results, strict=True)
    )
    return all(found is not None and found.verdict_alone == BETTER for found in differences)


@cache
def read_evidence() -> Evidence:
    """The evidence that is part of qpeft."""
    return Evidence.model_validate(parse_json((files("qpeft.compare") / FILE).read_bytes()))
