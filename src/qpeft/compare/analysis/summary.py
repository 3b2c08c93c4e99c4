"""The results of a study, computed from `study.json` and the rows alone: the only source of tables and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qpeft.compare.analysis.limits import limits_of
from qpeft.compare.analysis.records import (
    MethodRows,
    describe_figures,
    hardware,
    numbers,
    on_mixed_hardware,
    read_method,
)
from qpeft.compare.analysis.sentences import flags_of, headlines_of, sentence
from qpeft.compare.analysis.statistics import MIN_SEEDS, Difference, Pair, compare
from qpeft.compare.analysis.targets import steps_and_seconds, target_losses
from qpeft.compare.analysis.types import Block, BlockMember, MethodSummary, Reached, Summary
from qpeft.compare.resolved import ResolvedBlock, ResolvedMethod, ResolvedStudy
from qpeft.compare.rows import Curve, Row, Train
from qpeft.compare.study import UNTRAINED, is_ranked

Differences = Mapping[Pair, Difference]


def summarise(study: ResolvedStudy, all_rows: Mapping[str, Row]) -> Summary:
    """The results of the study; `all_rows` by cell_id."""
    rows = {method.key: read_method(study, method, all_rows) for method in study.methods}
    curves = {key: _curves(found.seeds) for key, found in rows.items()}
    targets = target_losses(study, {key: _of(curves[key], found.successes) for key, found in rows.items()})
    lower_is_better = study.lower_is_better
    differences = _differences(study, rows, lower_is_better)
    methods = [_method(study, method, rows[method.key], differences, targets) for method in study.methods]
    base = next((method.metric for method in methods if method.method == UNTRAINED and method.metric), None)
    methods = [
        replace(m, flags=flags_of(m, rows[m.key].trials, base.mean if base else None, lower_is_better)) for m in methods
    ]
    ranks = _ranks([m for m in methods if m.role == "main"], lower_is_better)
    methods = [replace(method, rank=ranks.get(method.key)) for method in methods]
    summary = Summary(
        study=study,
        lower_is_better=lower_is_better,
        methods=methods,
        blocks=[_block(block, methods, differences, lower_is_better) for block in study.blocks],
        targets=targets,
        limits=[],
        curves=curves,
        rows=rows,
        sentences={},
        headlines=[],
        n_comparisons=len({frozenset(pair) for pair, found in differences.items() if found.p is not None}),
    )
    sentences = {method.key: sentence(method, summary) for method in methods}
    trained = [rows[method.key] for method in study.methods if method.rates]
    return replace(
        summary,
        sentences=sentences,
        headlines=headlines_of(summary),
        limits=[*limits_of(summary), *_unequal_order(trained)],
    )


def _unequal_order(methods: Iterable[MethodRows]) -> list[str]:
    """Methods that did not see equal batches, which breaks the pairing of seeds."""
    orders: dict[int, set[str]] = {}
    for found in methods:
        for seed, row in found.successes.items():
            if sha := row.data.order_sha256:
                orders.setdefault(seed, set()).add(sha)
    unequal = [str(seed) for seed, found in orders.items() if len(found) > 1]
    if not unequal:
        return []
    return [f"The methods did not see the same batches with seed {', '.join(unequal)}: differences are not paired."]


def _differences(study: ResolvedStudy, rows: Mapping[str, MethodRows], lower_is_better: bool) -> Differences:
    """The study's family of comparisons: with the reference, of controls with their methods, and within blocks."""
    figure = f"quality.{study.metric}"
    by_seed = {key: {s: numbers(row).get(figure) for s, row in found.successes.items()} for key, found in rows.items()}
    values = {key: {s: value for s, value in found.items() if value is not None} for key, found in by_seed.items()}
    failed = {key for key, found in rows.items() if found.has_failures}
    return compare(_pairs(study), values, failed, lower_is_better)


def _pairs(study: ResolvedStudy) -> list[Pair]:
    in_blocks = [(member.key, block.of) for block in study.blocks for member in block.members]
    main = [(m.key, study.reference) for m in study.methods if m.role != "equal_budget"]
    controls = [(m.key, m.against) for m in study.methods if m.against is not None]
    return [(key, to) for key, to in (*main, *controls, *in_blocks) if key != to]


def _method(
    study: ResolvedStudy,
    method: ResolvedMethod,
    rows: MethodRows,
    differences: Differences,
    targets: Mapping[str, float | None],
) -> MethodSummary:
    figures = describe_figures(rows.successes)
    cost = {} if rows.cost is None else rows.cost.cost.to_json()
    trained = next((row.train for row in (*rows.successes.values(), *rows.present) if row.train.lr), Train())
    steps_to, seconds_to = _speeds(_curves(rows.successes) if method.rates else {}, targets)
    mixed = on_mixed_hardware(rows.successes)
    left = _mean("cost.params_deployed", figures)  # the plan counts before pruning
    return MethodSummary(
        **{name: getattr(method, name) for name in ("key", "label", "role", "against", "method", "settings", "hash")},
        trainable=method.trainable,
        deployed=method.deployed if left is None else round(left),
        generator=_mean("cost.params_generator", figures),
        bytes_stored=_mean("cost.bytes_stored", figures),
        lr=trained.lr if method.rates else None,
        lr_at_edge=trained.lr_at_grid_edge if method.rates else None,
        metric=figures.get(f"quality.{study.metric}"),
        figures=figures,
        cost=cost,
        hardware=None if rows.cost is None else hardware(rows.cost),
        statuses=rows.statuses,
        difference=differences.get((method.key, study.reference)) if method.role != "equal_budget" else None,
        difference_to_target=differences.get((method.key, method.against or "")),
        steps_to=steps_to,
        seconds_to={} if mixed else seconds_to,
        null_reasons=_reasons(rows, method, study.costs),
        flags=[],
        rank=None,
    )


def _block(
    block: ResolvedBlock, methods: list[MethodSummary], differences: Differences, lower_is_better: bool
) -> Block:
    keys = {member.key for member in block.members}
    present = [method for method in methods if method.key in keys or method.key == block.of]
    over = {member.key: member.over_budget for member in block.members}
    close = [m for m in present if is_ranked(m.trainable / block.budget)]
    ranks = _ranks(close, lower_is_better)
    members = [
        BlockMember(
            key=method.key,
            trainable=method.trainable,
            ratio=method.trainable / block.budget,
            over_budget=over.get(method.key, False),
            difference=differences.get((method.key, block.of)),
            rank=ranks.get(method.key),
        )
        for method in present
    ]
    return Block(block.of, block.budget, members)


def _ranks(methods: Iterable[MethodSummary], lower_is_better: bool) -> dict[str, int]:
    """Ranks by the mean, equal for equal means; only for methods with at least three seeds, all of them successful.

    Means over different sets of seeds are not comparable: seeds differ more than methods do.
    """
    means = {
        method.key: method.metric.mean if lower_is_better else -method.metric.mean
        for method in methods
        if method.metric is not None and MIN_SEEDS <= method.metric.n == len(method.statuses)
    }
    return {key: 1 + sum(other < mean for other in means.values()) for key, mean in means.items()}


def _speeds(
    curves: Mapping[int, Curve], targets: Mapping[str, float | None]
) -> tuple[dict[str, Reached], dict[str, Reached]]:
    hits = {name: steps_and_seconds(curves, loss) for name, loss in targets.items() if loss is not None}
    found = {name: hit for name, hit in hits.items() if hit is not None}
    return {name: hit[0] for name, hit in found.items()}, {name: hit[1] for name, hit in found.items()}


def _curves(rows: Mapping[int, Row | None]) -> dict[int, Curve]:
    return {seed: row.train.curve for seed, row in rows.items() if row is not None and row.train.curve}


def _of(curves: Mapping[int, Curve], seeds: Iterable[int]) -> dict[int, Curve]:
    return {seed: curves[seed] for seed in seeds if seed in curves}


def _mean(name: str, figures: Mapping[str, Any]) -> float | None:
    """Over the seeds."""
    stats = figures.get(name)
    return None if stats is None else stats.mean


def _reasons(rows: MethodRows, method: ResolvedMethod, has_costs: bool) -> dict[str, str]:
    """Why measurements are missing: the reasons that rows give, and those of missing rows."""
    reasons = {} if rows.successes else {"quality": "no seed succeeded"}
    if not method.rates:
        reasons |= {"cost": "nothing is trained", "capacity": "nothing is adapted"}
    elif rows.cost is None:
        reasons["cost"] = "not measured yet" if has_costs else "the study measures no costs"
    elif not rows.cost.succeeded:
        reasons["cost"] = f"{rows.cost.status}: {rows.cost.error_msg}"
    if on_mixed_hardware(rows.successes):
        reasons["train.seconds"] = "the seeds ran on different hardware"
    told = (*rows.successes.values(), *((rows.cost,) if rows.cost is not None else ()))
    return reasons | {name: reason for row in told for name, reason in row.null_reasons.items()}
