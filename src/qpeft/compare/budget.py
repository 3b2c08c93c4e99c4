"""How many parameters a method trains, and the methods of an equal-budget block at the largest size that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qpeft import methods
from qpeft.compare.study import Block, Candidate, MethodSpec, Study, is_ranked
from qpeft.errors import ConfigError
from qpeft.methods import Trains
from qpeft.methods.planning import plan
from qpeft.training.methods import build_config, build_generator
from qpeft.training.settings import TrainSettings

BUDGET = "@budget"  # in a candidate's settings: the block's budget


@dataclass(frozen=True)
class Counts:
    """Numbers trained, and numbers needed at inference beside the base."""

    trainable: int
    deployed: int


@dataclass(frozen=True)
class Member:
    """A method of a block at the size that was chosen."""

    spec: MethodSpec
    counts: Counts
    ratio: float  # of the budget
    over_budget: bool  # even its smallest size is larger

    @property
    def is_ranked(self) -> bool:
        """Whether it comes close enough to the budget to be compared at it."""
        return is_ranked(self.ratio)


def settings_of(study: Study, model: str, spec: MethodSpec | Candidate, settings: dict[str, Any]) -> TrainSettings:
    """The run of a method, as far as counting needs it."""
    return TrainSettings(
        model=model, data="", out="", task=study.task, method=spec.method, host=spec.host, method_settings=settings
    )


def count(study: Study, model: str, spec: MethodSpec | Candidate, settings: dict[str, Any], base: Any) -> Counts:
    """What a method trains and deploys on `base`, a model on any device. Raises ConfigError for unfit settings.

    A new classification head is not counted: every method trains the same one.
    """
    trains = methods.named(spec.method).trains
    if trains in (Trains.NOTHING, Trains.HEAD):
        return Counts(0, 0)
    if trains is Trains.MODEL:
        total = sum(p.numel() for p in base.parameters())
        return Counts(total, total)
    chosen = settings_of(study, model, spec, settings)
    chosen.check()
    try:
        planned = plan(base, build_config(chosen), build_generator(chosen))
    except ConfigError as error:
        raise ConfigError(f"method {spec.key}: {error}") from error
    return Counts(planned.trainable, planned.deployed)


def members(study: Study, model: str, block: Block, budget: int, base: Any) -> list[Member]:
    """The methods of `block`, each at its largest size with at most `budget` trainable parameters, or its smallest."""
    return [_fitted(study, model, block, candidate, budget, base) for candidate in block.methods]


def _fitted(study: Study, model: str, block: Block, candidate: Candidate, budget: int, base: Any) -> Member:
    best: tuple[int | None, Counts] | None = None
    fixed = {name: budget if value == BUDGET else value for name, value in candidate.settings.items()}
    for value in candidate.values or [None]:
        settings = fixed if value is None else {**fixed, str(candidate.vary): value}
        counts = count(study, model, candidate, settings, base)
        if best is not None and counts.trainable > budget:
            break
        best = value, counts
    assert best is not None  # there is at least one size
    value, counts = best
    chosen = {} if value is None else {str(candidate.vary): value}
    spec = MethodSpec(
        key=f"{candidate.key}@{block.of}",
        label=f"{candidate.label or candidate.key}{_suffix(candidate, value)}",
        method=candidate.method,
        host=candidate.host,
        settings={**fixed, **chosen},
        lr=candidate.lr,
    )
    return Member(spec, counts, counts.trainable / budget, over_budget=counts.trainable > budget)


def _suffix(candidate: Candidate, value: int | None) -> str:
    return "" if value is None else f", {candidate.vary}={value}"
