"""The results of a study as frozen data: made by `summary`, read by the tables and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from qpeft.compare.analysis.records import FAILURES, MethodRows
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.compare.metrics import METRICS, Metric
from qpeft.compare.rate_search import Edge
from qpeft.compare.resolved import ResolvedStudy
from qpeft.compare.rows import Cost, Row
from qpeft.training.task_types import TASKS


@dataclass(frozen=True)
class PublishedResult:
    """A published value of a method, and the measured one in the same unit, if there is one."""

    metric: str  # of METRICS
    value: float
    measured: Stats | None
    source: str
    note: str | None

    @property
    def difference(self) -> float | None:
        """The measured mean minus the published value."""
        return None if self.measured is None else self.measured.mean - self.value


@dataclass(frozen=True)
class Reached:
    """When a target loss was reached: steps, or seconds, by seed; None for a seed that never did.

    `median` counts such a seed as later than all others, and is None if half of the seeds or more are such. `limit`:
    where training ended.
    """

    median: float | None
    values: dict[int, float | None]
    limit: float

    @property
    def n_reached(self) -> int:
        """Seeds that reached the target."""
        return sum(value is not None for value in self.values.values())


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One method: what it is, its results over the seeds that succeeded, and what limits them."""

    key: str
    label: str
    role: str
    against: str | None
    method: str
    kind: str  # quantum or classical
    is_trained: bool  # False for the base model as it is
    settings: dict[str, Any]
    hash: str
    trainable: int
    deployed: int
    generator: float | None  # parameters that regenerate the deployed ones
    bytes_stored: float | None
    lr: float | None
    lr_at_edge: Edge | None  # whether it is the lowest or highest of those tried
    metric: Stats | None
    measurements: dict[str, Stats]  # by dotted name: "quality.test_ppl"
    cost: Cost  # from the cost row, measured alone on the machine
    hardware: str | None  # from the cost row
    statuses: dict[int, str]  # by seed; "missing" where there is no row
    difference: Difference | None  # to the study's reference; None for the reference and for members of blocks
    difference_to_target: Difference | None  # of a control: to its method
    steps_to: dict[int, Reached] = field(default_factory=dict)  # by share; see Summary.targets
    seconds_to: dict[int, Reached] = field(default_factory=dict)
    null_reasons: dict[str, str]  # by dotted name: why a measurement is missing
    flags: list[str] = field(default_factory=list)
    published: list[PublishedResult] = field(default_factory=list)
    rank: int | None = None  # among main methods; needs three seeds, and that all planned ones succeeded

    @property
    def ok(self) -> int:
        """Seeds that succeeded."""
        return sum(status == "success" for status in self.statuses.values())

    @property
    def unimproved(self) -> int:
        """Seeds whose lowest validation loss is that before training: the results are those of the initial values."""
        best = self.measurements.get("quality.best_step")
        return (
            list(best.values.values()).count(0) if best is not None and self.is_trained and self.lr is not None else 0
        )

    @property
    def has_improved(self) -> bool:
        """False if training lowered the validation loss with no seed."""
        return not 0 < self.ok == self.unimproved

    @property
    def has_failures(self) -> bool:
        """True if a seed failed or diverged."""
        return not FAILURES.isdisjoint(self.statuses.values())


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
    targets: dict[int, float]  # validation loss by share of the reference's gain in %; see `analysis.targets`
    n_comparisons: int  # in the family of Holm's correction
    rows: dict[str, MethodRows]  # by method
    limits: list[str] = field(default_factory=list)
    sentences: dict[str, str] = field(default_factory=dict)  # by method: the answer with its interval
    headlines: list[str] = field(default_factory=list)  # the answer to the study's question

    def __getitem__(self, key: str) -> MethodSummary:
        return next(method for method in self.methods if method.key == key)

    @property
    def loss_unit(self) -> str:
        if TASKS[self.study.task].is_regression:
            return "squared error"
        return "nats per token" if self.study.is_language_model else "nats per example"

    @property
    def cost_noise(self) -> float | None:
        """The largest difference between two measurements of the same model, relative; None if it was not measured."""
        found = [method.cost.noise for method in self.methods if method.cost.noise is not None]
        return max(found, default=None)

    @property
    def metric(self) -> Metric:
        """How the study's metric is shown."""
        return self.shown(self.study.metric)

    def shown(self, metric: str) -> Metric:
        """How a metric of METRICS is shown."""
        found, unit = METRICS[metric], self.loss_unit
        return found._replace(unit=unit, difference_unit=unit) if metric == "test_loss" else found

    @property
    def by_quality(self) -> list[MethodSummary]:
        """All methods, the best first; those without a result last."""

        def badness(method: MethodSummary) -> float:
            if method.metric is None:
                return math.inf
            return method.metric.mean if self.lower_is_better else -method.metric.mean

        return sorted(self.methods, key=badness)

    @property
    def ordered(self) -> list[MethodSummary]:
        """Main methods, the best first, each followed by its controls; without members of equal-budget blocks."""
        controls = [method for method in self.by_quality if method.role == "control"]
        main = [method for method in self.by_quality if method.role == "main"]
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
