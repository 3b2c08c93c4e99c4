"""Parameter counts of methods, and equal-budget blocks: each method at the largest size that fits the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qpeft import methods
from qpeft.compare.resolved import ResolvedBlock, ResolvedMember
from qpeft.compare.study import Block, Candidate, MethodSpec, Role, Study, is_ranked
from qpeft.errors import ConfigError
from qpeft.methods import Trains
from qpeft.methods.planning import plan
from qpeft.training.methods import build_config, build_generator, train_in_full
from qpeft.training.outputs import count_trainable
from qpeft.training.settings import TrainSettings

BUDGET = "@budget"  # in a candidate's settings: replaced by the block's budget


class Counted(NamedTuple):
    """A method of the study with its parameter counts."""

    spec: MethodSpec
    role: Role
    trainable: int
    deployed: int


class Host(NamedTuple):
    """A base model on the meta device, and the modules of its classification head, which every method trains."""

    model: Any
    head: Sequence[str] = ()


def count(study: Study, base: Host, spec: MethodSpec | Candidate, settings: dict[str, Any]) -> tuple[int, int]:
    """Trainable and deployed parameters of a method, without those of the head. Raises ConfigError."""
    trains = methods.named(spec.method).trains
    if trains is Trains.NOTHING:
        return 0, 0
    run = TrainSettings(
        model="",
        data="",
        out="",
        task=study.task,
        dtype=study.training.dtype,
        method=spec.method,
        host=spec.host,
        method_settings=settings,
    )
    in_head = count_trainable(base.model, base.head)
    try:
        run.check()
        if trains is not Trains.ADAPTER:
            total = count_trainable(base.model) - in_head if trains is Trains.MODEL else 0
            return total, total
        config = build_config(run)
        train_in_full(config, base.head)
        planned = plan(base.model, config, build_generator(run))
    except ConfigError as error:
        raise ConfigError(f"method {spec.key}: {error}") from error
    return planned.trainable - in_head, planned.deployed - in_head


def fill_block(study: Study, base: Host, block: Block, budget: int) -> tuple[ResolvedBlock, list[Counted]]:
    """The block and its candidates, each at its largest size of at most `budget` trainable parameters, or its smallest.

    The first member of the block is the method whose parameter count is the budget. Raises ConfigError if it has none.
    """
    if budget == 0:
        raise ConfigError(f"blocks.of: {block.of} trains no parameters that could be a budget; name another method")
    found = [_fit(study, base, block, candidate, budget) for candidate in block.methods]
    members = [_member(block.of, budget, budget), *(_member(one.spec.key, one.trainable, budget) for one in found)]
    return ResolvedBlock(of=block.of, budget=budget, members=members), found


def _member(key: str, trainable: int, budget: int) -> ResolvedMember:
    ratio, is_over = trainable / budget, trainable > budget
    return ResolvedMember(key=key, trainable=trainable, ratio=ratio, over_budget=is_over, ranked=is_ranked(ratio))


def _fit(study: Study, base: Host, block: Block, candidate: Candidate, budget: int) -> Counted:
    fixed = {name: budget if value == BUDGET else value for name, value in candidate.settings.items()}
    label = candidate.label or candidate.key
    sizes = [(label, fixed)]
    if candidate.vary is not None:
        name = candidate.vary
        sizes = [(f"{label}, {name}={value}", {**fixed, name: value}) for value in candidate.values]
    chosen = None
    for label, settings in sizes:
        counts = count(study, base, candidate, settings)
        if chosen is not None and counts[0] > budget:
            break
        chosen = label, settings, counts
    assert chosen is not None  # there is at least one size
    label, settings, counts = chosen
    spec = MethodSpec(
        key=f"{candidate.key}@{block.of}",
        label=label,
        method=candidate.method,
        host=candidate.host,
        settings=settings,
        lr=candidate.lr,
    )
    return Counted(spec, "equal_budget", *counts)
