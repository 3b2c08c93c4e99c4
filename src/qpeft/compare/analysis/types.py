"""The results of a study as frozen data: made by `summary`, read by the tables and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qpeft.compare.analysis.records import FAILURES, MethodRows
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.compare.resolved import ResolvedStudy
from qpeft.compare.rows import Curve, Row


@dataclass(frozen=True)
class Reached:
    """When a target loss was reached: steps, or seconds, by seed; None for a seed that never did.

    `mean` is None unless every seed reached it: a mean over the fast seeds would be too good. `limit`: where
    training ended.
    """

    mean: float | None
    values: dict[int, float | None]
    limit: float


@dataclass(frozen=True)
class MethodSummary:
    """One method: what it is, its results over the seeds that succeeded, and what limits them."""

    key: str
    label: str
    role: str
    against: str | None
    method: str
    settings: dict[str, Any]
    hash: str
    trainable: int
    deployed: int
    generator: float | None  # parameters that regenerate the deployed ones
    bytes_stored: float | None
    lr: float | None
    lr_at_edge: str | None  # "low" | "high"
    metric: Stats | None
    figures: dict[str, Stats]  # by dotted name: "quality.test_ppl"
    cost: dict[str, Any]  # from the cost row, measured alone on the machine
    hardware: str | None  # from the cost row
    statuses: dict[int, str]  # by seed; "missing" where there is no row
    difference: Difference | None  # to the study's reference; None for the reference and for members of blocks
    difference_to_target: Difference | None  # of a control: to its method
    steps_to: dict[str, Reached]  # by target; see Summary.targets
    seconds_to: dict[str, Reached]
    null_reasons: dict[str, str]  # by dotted name: why a measurement is missing
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
    """A method in an equal-budget block. `difference` is to the method whose count is the budget."""

    key: str
    trainable: int
    ratio: float  # to the budget
    over_budget: bool
    difference: Difference | None
    rank: int | None  # in the block, only where `is_ranked(ratio)`, and as in MethodSummary


@dataclass(frozen=True)
class Block:
    """An equal-budget block: methods at the budget of the method `of`, which is a member."""

    of: str
    budget: int
    members: list[BlockMember]


@dataclass(frozen=True)
class Summary:
    """The results of a study, as far as its rows go."""

    study: ResolvedStudy
    lower_is_better: bool
    methods: list[MethodSummary]
    blocks: list[Block]
    targets: dict[str, float | None]  # validation losses: "reference", "half_of_full", "ninety_of_full"
    limits: list[str]
    curves: dict[str, dict[int, Curve]]  # by method and seed
    sentences: dict[str, str]  # by method: the answer with its interval
    headlines: list[str]  # for each method with controls: how many of them perform as well
    n_comparisons: int  # in the family of Holm's correction
    rows: dict[str, MethodRows]  # by method

    def __getitem__(self, key: str) -> MethodSummary:
        return next(method for method in self.methods if method.key == key)

    @property
    def ordered(self) -> list[MethodSummary]:
        """Main methods, the best first, each followed by its controls; without members of equal-budget blocks."""

        def badness(method: MethodSummary) -> float:
            if method.metric is None:
                return math.inf
            return method.metric.mean if self.lower_is_better else -method.metric.mean

        by_quality = sorted(self.methods, key=badness)
        main = [method for method in by_quality if method.role == "main"]
        controls = [method for method in by_quality if method.role == "control"]
        found = [item for method in main for item in (method, *(c for c in controls if c.against == method.key))]
        return found + [control for control in controls if control not in found]

    @property
    def present_rows(self) -> list[Row]:
        """Every row of the study, method by method."""
        return [row for found in self.rows.values() for row in found.present]

    @property
    def failures(self) -> list[Row]:
        """Every row that is no success, trials of learning rates included."""
        return [row for row in self.present_rows if not row.succeeded]

    @property
    def tuning(self) -> dict[str, list[tuple[float, float | None]]]:
        """By method: the learning rates that were tried, each with its validation loss."""
        return {key: [(lr, _valid_loss(row)) for lr, row in found.trials] for key, found in self.rows.items()}


def _valid_loss(row: Row | None) -> float | None:
    return row.quality.valid_loss if row is not None and row.succeeded else None
