"""The evidence behind `qpeft.suggest`: losses of many adapters in several setups, by seed, as measured by a study.

`evidence.json` is made from a study's rows by `benchmarks/evidence.py`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from qpeft.compare.analysis.statistics import BETTER, Stats, describe, paired_difference
from qpeft.files import parse_json

FILE = "evidence.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setup(_Part):
    """A base and a text, with the mean test loss of the base as it is, and of the reference."""

    base: str
    base_parameters: int
    data: str
    steps: int
    untrained: float
    reference: float


class Result(_Part):
    """What a design reached in a setup: test losses in nats per token by seed, at the learning rate chosen there."""

    trainable: int
    lr: float
    losses: dict[int, float]

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

    def ranked(self) -> list[Design]:
        """The designs by their mean share over the setups, the best first."""
        return sorted(self.designs, key=lambda design: (-fmean(self.shares(design)), design.key))


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
