"""The results of a study, computed from `study.json` and the rows alone: the only source of tables and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qpeft.compare.analysis.limits import limits_of
from qpeft.compare.analysis.records import MethodRows, describe_measurements, hardware, measurements, read_method
from qpeft.compare.analysis.sentences import flags_of, headlines_of, sentence
from qpeft.compare.analysis.statistics import MIN_SEEDS, Difference, Pair, Stats, compare, describe
from qpeft.compare.analysis.targets import seconds_to, steps_to, target_losses
from qpeft.compare.analysis.types import Block, BlockMember, MethodSummary, PublishedResult, Summary
from qpeft.compare.metrics import METRICS, TRAINABLE
from qpeft.compare.resolved import ResolvedBlock, ResolvedMethod, ResolvedStudy
from qpeft.compare.rows import Cost, Row, Train
from qpeft.compare.study import is_ranked

Differences = Mapping[Pair, Difference]

_SAME = ("key", "label", "role", "against", "method", "kind", "is_trained", "settings", "hash")  # as in study.json


def summarise(study: ResolvedStudy, all_rows: Mapping[str, Row]) -> Summary:
    """The results of the study; `all_rows` by cell_id."""
    rows = {method.key: read_method(study, method, all_rows) for method in study.methods}
    targets = target_losses(rows[study.reference])
    lower = study.lower_is_better
    differences = compare(_pairs(study), *_values(study, rows), lower)
    methods = [_method(study, method, rows[method.key], differences) for method in study.methods]
    untrained = next((method.metric.mean for method in methods if not method.is_trained and method.metric), None)
    ranks = _ranks([m for m in methods if m.role == "main"], lower)
    methods = [
        replace(
            method,
            flags=flags_of(method, rows[method.key].trials, untrained, lower),
            rank=ranks.get(method.key),
            steps_to=steps_to(rows[method.key], targets) if method.is_trained else {},
            seconds_to=seconds_to(rows[method.key], targets) if method.is_trained else {},
        )
        for method in methods
    ]
    summary = Summary(
        study=study,
        lower_is_better=lower,
        methods=methods,
        blocks=[_block(block, methods, differences, lower) for block in study.blocks],
        targets=targets,
        n_comparisons=len({frozenset(pair) for pair, found in differences.items() if found.p is not None}),
        rows=rows,
    )
    sentences = {method.key: sentence(method, summary) for method in methods}
    return replace(summary, sentences=sentences, headlines=headlines_of(summary), limits=limits_of(summary))


def _pairs(study: ResolvedStudy) -> list[Pair]:
    """The study's family of comparisons: with the reference, of controls with their methods, and within blocks."""
    in_blocks = [(member.key, block.of) for block in study.blocks for member in block.members]
    main = [(m.key, study.reference) for m in study.methods if m.role != "equal_budget"]
    controls = [(m.key, m.against) for m in study.methods if m.against is not None]
    return [(key, to) for key, to in (*main, *controls, *in_blocks) if key != to]


def _values(study: ResolvedStudy, rows: Mapping[str, MethodRows]) -> tuple[dict[str, dict[int, float]], set[str]]:
    """The metric by method and seed, and the methods with a failed seed."""
    metric = f"quality.{study.metric}"
    found = {key: {s: measurements(row) for s, row in of.successes.items()} for key, of in rows.items()}
    values = {key: {s: all_[metric] for s, all_ in by_seed.items() if metric in all_} for key, by_seed in found.items()}
    return values, {key for key, of in rows.items() if of.has_failures}


def _method(study: ResolvedStudy, method: ResolvedMethod, rows: MethodRows, differences: Differences) -> MethodSummary:
    found = describe_measurements(rows)
    means = {name: stats.mean for name, stats in found.items()}
    deployed = means.get("cost.params_deployed")  # the plan counts before pruning, and without the head
    trained = next((row.train for row in (*rows.successes.values(), *rows.present) if row.train.lr), Train())
    return MethodSummary(
        **{name: getattr(method, name) for name in _SAME},
        trainable=method.trainable,
        deployed=method.deployed if deployed is None else round(deployed - means.get("cost.params_head", 0)),
        generator=means.get("cost.params_generator"),
        bytes_stored=means.get("cost.bytes_stored"),
        lr=trained.lr if method.rates else None,
        lr_at_edge=rows.search.edge if trained.lr is not None and trained.lr == rows.search.best else None,
        metric=found.get(f"quality.{study.metric}"),
        measurements=found,
        cost=Cost() if rows.cost is None else rows.cost.cost,
        hardware=None if rows.cost is None else hardware(rows.cost),
        statuses=rows.statuses,
        difference=differences.get((method.key, study.reference)) if method.role != "equal_budget" else None,
        difference_to_target=differences.get((method.key, method.against or "")),
        null_reasons=_reasons(rows, method, study.costs),
        published=_published(study, method, found),
    )


def _published(study: ResolvedStudy, method: ResolvedMethod, measured: Mapping[str, Stats]) -> list[PublishedResult]:
    """The published values of the method with those measured, in the units of the report."""
    found = []
    for one in method.published:
        metric = one.metric or study.metric
        factor = METRICS[metric].factor
        stats = measured.get(f"quality.{metric}")
        values = {seed: factor * value for seed, value in stats.values.items()} if stats else {}
        if metric == TRAINABLE:
            values = dict.fromkeys(study.seeds_of(method)[:1], float(method.trainable))  # the plan has counted it
        found.append(PublishedResult(metric, one.value, describe(values), one.source, one.note))
    return found


def _block(
    block: ResolvedBlock, methods: list[MethodSummary], differences: Differences, lower_is_better: bool
) -> Block:
    over = {member.key: member.over_budget for member in block.members}
    present = [method for method in methods if method.key in {*over, block.of}]
    ranks = _ranks([m for m in present if is_ranked(m.trainable / block.budget)], lower_is_better)
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


def _reasons(rows: MethodRows, method: ResolvedMethod, has_costs: bool) -> dict[str, str]:
    """Why measurements are missing: the reasons that rows give, and those of missing rows."""
    has_ended = any(row is not None for row in rows.seeds.values())
    reasons = {} if rows.successes else {"quality": "no seed succeeded" if has_ended else "not measured yet"}
    if not method.rates:
        reasons |= {"cost": "nothing is trained", "capacity": "nothing is adapted"}
    elif rows.cost is None:
        reasons["cost"] = "not measured yet" if has_costs else "the study measures no costs"
    elif not rows.cost.succeeded:
        reasons["cost"] = f"{rows.cost.status}: {rows.cost.error_msg}"
    if rows.on_mixed_hardware:
        reasons["train.seconds"] = "the seeds ran on different hardware"
    for row in (*rows.successes.values(), *([rows.cost] if rows.cost is not None else [])):
        reasons |= row.null_reasons
    return reasons
