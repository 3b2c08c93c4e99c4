"""The shape of what a study found: plain frozen data, made by `summary`, read by the tables and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qpeft.compare.analysis.records import FAILURES
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.compare.resolved import ResolvedStudy
from qpeft.compare.rows import Curve, Row


@dataclass(frozen=True)
class Reached:
    """When a target loss was reached: steps, or seconds, by seed; None for a seed that never did.

    `mean` is None unless every seed reached it: a mean over the fast ones would flatter. `limit` is where training
    ended.
    """

    mean: float | None
    values: dict[int, float | None]
    limit: float


@dataclass(frozen=True)
class MethodSummary:
    """One method: what it is, what it reached over the seeds that succeeded, and how far that may be believed."""

    key: str
    label: str
    role: str
    against: str | None
    method: str
    settings: dict[str, Any]
    hash: str
    trainable: int
    deployed: int
    generator: float | None  # numbers that regenerate the deployed ones
    bytes_stored: float | None
    lr: float | None
    lr_at_edge: str | None  # "low" | "high"
    metric: Stats | None
    figures: dict[str, Stats]  # by dotted name: "quality.test_ppl"
    cost: dict[str, Any]  # of the cost row, measured alone on the machine
    hardware: str | None  # of the cost row
    statuses: dict[int, str]  # by seed; "missing" where there is no row
    difference: Difference | None  # to the study's reference; None for it and for members of equal-budget blocks
    difference_to_target: Difference | None  # of a control: to what it is a control of
    steps_to: dict[str, Reached]  # by target; see Summary.targets
    seconds_to: dict[str, Reached]
    null_reasons: dict[str, str]  # by dotted name: why a figure is missing
    flags: list[str]
    rank: int | None  # among the main methods; None with fewer than three seeds, or unless all planned ones succeeded

    @property
    def ok(self) -> int:
        """Seeds that succeeded."""
        return sum(status == "success" for status in self.statuses.values())

    @property
    def has_failures(self) -> bool:
        """True if a seed failed or diverged."""
        return any(status in FAILURES for status in self.statuses.values())


@dataclass(frozen=True)
class BlockMember:
    """A method in an equal-budget block; `difference` is to the method whose count is the budget."""

    key: str
    trainable: int
    ratio: float  # to the budget
    over_budget: bool
    difference: Difference | None
    rank: int | None  # in the block, only where `is_ranked(ratio)`, and as in MethodSummary


@dataclass(frozen=True)
class Block:
    """Methods at the budget of one, which is a member."""

    of: str
    budget: int
    members: list[BlockMember]


@dataclass(frozen=True)
class Summary:
    """A whole study, as far as its rows go."""

    study: ResolvedStudy
    lower_is_better: bool
    methods: list[MethodSummary]
    blocks: list[Block]
    failures: list[Row]  # every row that is no success, trials of rates included
    targets: dict[str, float | None]  # validation losses: "reference", "half_of_full", "ninety_of_full"
    limits: list[str]
    tuning: dict[str, list[tuple[float, float | None]]]  # by method: rate, validation loss
    curves: dict[str, dict[int, Curve]]  # by method and seed
    sentences: dict[str, str]  # by method: the answer with its interval
    headlines: list[str]  # of each method with controls: how many of them do as well
    n_comparisons: int  # in the family that Holm's correction is over

    def __getitem__(self, key: str) -> MethodSummary:
        return next(method for method in self.methods if method.key == key)
