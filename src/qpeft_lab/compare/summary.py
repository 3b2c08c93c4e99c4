"""The results of a study, computed from its plan and rows alone: the only source of tables, charts and page."""

from __future__ import annotations

import json
import lzma
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from qpeft_lab.compare.metrics import METRICS, TRAINABLE, Metric
from qpeft_lab.compare.rate_search import Edge, RateSearch
from qpeft_lab.compare.rows import Row, cell_id, line_of, read_rows, succeeded
from qpeft_lab.compare.stats import (
    BETTER,
    MIN_SEEDS,
    NO_DIFFERENCE,
    PRELIMINARY,
    WORSE,
    Difference,
    Pair,
    Stats,
    compare,
    describe,
)
from qpeft_lab.compare.study import LEAST_SHARE, PlannedMethod, PlannedStudy, is_comparable, read_study
from qpeft_lab.data.task_types import TASKS

MISSING = "missing"
SHARE = 80  # per cent of the reference's gain in validation loss, whose steps are counted
SIMULATED = "All quantum circuits are simulated on classical hardware; no quantum speed-up is shown or implied."
MOST_NOISE = 0.1
_NOT_PUBLISHED = ("texts", "why", "traceback")
_MOST_NAMED = 6  # methods in a sentence


@dataclass(frozen=True)
class Reached:
    """The steps after which each seed first had a loss of at most a target; None for a seed that never had.

    `median` counts such a seed as later than all others, and is None if half of the seeds or more are such. `limit`:
    where training ended. Nothing is interpolated between evaluations.
    """

    steps: dict[int, float | None]
    limit: float

    @property
    def median(self) -> float | None:
        middle = median(math.inf if step is None else step for step in self.steps.values())
        return middle if math.isfinite(middle) else None

    @property
    def n_reached(self) -> int:
        """Seeds that reached the target."""
        return sum(step is not None for step in self.steps.values())


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method: its rows, and what follows from them."""

    method: PlannedMethod
    seeds: dict[int, Row | None]  # None for a row that does not exist yet
    trials: dict[float, Row | None]  # by learning rate; empty where a single one was used
    cost: Row | None
    search: RateSearch
    metric: Stats | None
    # to the reference or, of a member of an equal-budget block, to the method whose size it has; None for these two
    difference: Difference | None = None
    control: Difference | None = None  # of a control: to its method
    steps_to: Reached | None = None  # the share of the reference's gain

    @property
    def key(self) -> str:
        return self.method.key

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def role(self) -> str:
        return self.method.role

    @property
    def trainable(self) -> int:
        return self.method.trainable

    @cached_property
    def successes(self) -> dict[int, Row]:
        return {seed: row for seed, row in self.seeds.items() if row is not None and succeeded(row)}

    @property
    def statuses(self) -> dict[int, str]:
        return {seed: MISSING if row is None else row["status"] for seed, row in self.seeds.items()}

    @property
    def lost(self) -> str:
        """ "1 diverged, 2 missing"."""
        counts = Counter(status for status in self.statuses.values() if status != "success")
        return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))

    @property
    def has_failures(self) -> bool:
        """Whether a seed failed or diverged."""
        return bool(set(self.statuses.values()) - {"success", MISSING})

    @property
    def rows(self) -> list[Row]:
        """Every row once."""
        found = [*self.seeds.values(), *self.trials.values(), self.cost]
        return list({id(row): row for row in found if row is not None}.values())

    @property
    def lr(self) -> float | None:
        """The learning rate of the seeds."""
        rates = [row["lr"] for row in (*self.successes.values(), *self.rows) if row.get("lr")]
        return rates[0] if rates and self.method.rates else None

    @property
    def lr_at_edge(self) -> Edge | None:
        """Whether the learning rate is the lowest or highest of those tried."""
        return self.search.edge if self.lr is not None and self.lr == self.search.best else None

    @property
    def has_improved(self) -> bool:
        """False if training lowered the validation loss with no seed: the results are those before training."""
        steps = [row.get("best_step") for row in self.successes.values()]
        return not self.lr or not steps or any(steps)

    @property
    def curves(self) -> dict[int, list[list[float]]]:
        """Of each seed that succeeded: [step, validation loss, seconds] of every evaluation."""
        return {seed: row["curve"] for seed, row in self.successes.items() if row.get("curve")}

    def stats(self, name: str) -> Stats | None:
        """A measurement over the seeds that have it; those of the cost cell have one value."""
        values = {seed: row[name] for seed, row in self.successes.items() if row.get(name) is not None}
        if not values and self.cost is not None and self.cost.get(name) is not None:
            values = {self.cost["seed"]: self.cost[name]}
        return describe(values)

    def mean(self, name: str) -> float | None:
        found = self.stats(name)
        return None if found is None else found.mean

    @property
    def deployed(self) -> int:
        """Deployed parameters, without the head; the plan counts before ranks are pruned."""
        found = self.mean("params_deployed")
        return self.method.deployed if found is None else round(found - (self.mean("params_head") or 0))


@dataclass(frozen=True)
class Summary:
    """The results of a study, as far as its rows go."""

    study: PlannedStudy
    results: list[Result]
    target: float | None  # validation loss at the share of the reference's gain, equal for all methods and seeds
    n_comparisons: int  # in the family of Holm's correction

    def __getitem__(self, key: str) -> Result:
        return next(found for found in self.results if found.key == key)

    @property
    def lower_is_better(self) -> bool:
        return self.study.lower_is_better

    @property
    def reference(self) -> Result:
        return self[self.study.reference]

    @property
    def loss_unit(self) -> str:
        if TASKS[self.study.task].is_regression:
            return "squared error"
        return "nats per token" if self.study.is_language_model else "nats per example"

    @property
    def metric(self) -> Metric:
        """How the study's metric is shown."""
        return self.shown(self.study.metric)

    def shown(self, name: str) -> Metric:
        """How a metric of METRICS is shown."""
        found = METRICS[name]
        return found._replace(unit=self.loss_unit) if name == "test_loss" else found

    @property
    def by_quality(self) -> list[Result]:
        """All methods, the best first; those without a result last."""
        sign = 1 if self.lower_is_better else -1
        return sorted(self.results, key=lambda found: sign * found.metric.mean if found.metric else math.inf)

    @property
    def ordered(self) -> list[Result]:
        """Main methods, the best first, each followed by its controls; without members of equal-budget blocks."""
        controls = [found for found in self.by_quality if found.role == "control"]
        main = [found for found in self.by_quality if found.role == "main"]
        listed = [item for found in main for item in (found, *(c for c in controls if c.method.against == found.key))]
        return listed + [control for control in controls if control not in listed]

    @property
    def blocks(self) -> dict[str, list[Result]]:
        """The members of each equal-budget block by the method whose size they have, which is the first."""
        keys = dict.fromkeys(found.method.block for found in self.results if found.method.block)
        return {of: [self[of], *(found for found in self.results if found.method.block == of)] for of in keys}

    def ratio(self, found: Result) -> float:
        """A block member's share of the budget."""
        return found.trainable / self[found.method.block].trainable if found.method.block else 1.0

    @property
    def rows(self) -> list[Row]:
        """Every row of the study, method by method."""
        return [row for found in self.results for row in found.rows]

    @property
    def failures(self) -> list[Row]:
        """Every row that is no success, trials of learning rates included."""
        return [row for row in self.rows if not succeeded(row)]

    @cached_property
    def answers(self) -> list[str]:
        """The answer to the study's question, first what the study is about, in sentences without numbers."""
        return [text for text in _answers(self) if text]

    @cached_property
    def warnings(self) -> list[str]:
        """What the study or its measurements may lack; the command prints it as well."""
        return list(dict.fromkeys(_warnings(self)))

    @cached_property
    def limits(self) -> list[str]:
        """What the study does not show, the most important first."""
        return list(dict.fromkeys(text for text in _limits(self) if text))


def load(path: Path) -> Summary:
    """The results in the folder of a study, or in a published file.

    Raises InputError or CheckpointError where there is no valid study.
    """
    if not path.is_file():
        return summarise(read_study(path), read_rows(path))
    study, *rows = map(json.loads, lzma.decompress(path.read_bytes()).splitlines())
    return summarise(PlannedStudy.model_validate(study), {cell_id(row): row for row in rows})


def publish(folder: Path, file: Path) -> None:
    """Write the study and its rows in `folder`, without generated texts, as one compressed file."""
    summary = load(folder)
    rows = [{name: value for name, value in row.items() if name not in _NOT_PUBLISHED} for row in summary.rows]
    lines = [json.dumps(summary.study.model_dump()) + "\n", *map(line_of, rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress("".join(lines).encode(), preset=9))


def summarise(study: PlannedStudy, rows: Mapping[str, Row]) -> Summary:
    """The results of the study; `rows` by cell_id."""
    results = [_read(study, method, rows) for method in study.methods]
    by_key = {found.key: found for found in results}
    values = {key: found.metric.values if found.metric else {} for key, found in by_key.items()}
    failed = {key for key, found in by_key.items() if found.has_failures}
    differences = compare(_pairs(study), values, failed, study.lower_is_better)
    target = _target_loss(by_key[study.reference])
    results = [
        replace(
            found,
            difference=differences.get((found.key, found.method.block or study.reference)),
            control=differences.get((found.key, found.method.against or "")),
            steps_to=_steps_to(found, target),
        )
        for found in results
    ]
    n_comparisons = len({frozenset(pair) for pair, found in differences.items() if found.p is not None})
    return Summary(study, results, target, n_comparisons)


def _read(study: PlannedStudy, method: PlannedMethod, rows: Mapping[str, Row]) -> Result:
    find = partial(study.row_of, method, rows)
    search = study.search(method, rows)
    seeds = {seed: find(f"seed{seed}", seed, search.rates) for seed in study.seeds}
    if study.is_deterministic(method):  # the one result counts for every seed
        seeds = dict.fromkeys(seeds, next((row for row in seeds.values() if row is not None), None))
    tried = search.rates if len(method.rates) > 1 else []
    trials = {rate: row for rate in tried if (row := study.trial_of(method, rows, rate)) or rate in method.rates}
    found = Result(
        method=method,
        seeds=seeds,
        trials=trials,
        cost=find("cost", study.seeds[0], search.rates),
        search=search,
        metric=None,
    )
    return replace(found, metric=found.stats(study.metric) if found.successes else None)


def _pairs(study: PlannedStudy) -> list[Pair]:
    """The study's family of comparisons: with the reference, of controls with their methods, and within blocks."""
    main = [(method.key, method.block or study.reference) for method in study.methods]
    controls = [(method.key, method.against) for method in study.methods if method.against is not None]
    return [(key, to) for key, to in (*main, *controls) if key != to]


def _target_loss(reference: Result) -> float | None:
    """The validation loss at the share of the reference's gain: its mean initial loss minus its mean final one."""
    ends = [(curve[0][1], curve[-1][1]) for curve in reference.curves.values()]
    start, end = (fmean(losses) for losses in zip(*ends, strict=True)) if ends else (0.0, 0.0)
    return start - SHARE / 100 * (start - end) if start > end else None


def _steps_to(found: Result, target: float | None) -> Reached | None:
    """A seed that did not succeed has not reached the target; a seed without a row is left out."""
    ended = {seed: row.get("curve") or [] for seed, row in found.seeds.items() if row is not None}
    limit = max((curve[-1][0] for curve in ended.values() if curve), default=None)
    if limit is None or target is None or not found.method.rates:
        return None

    def first(seed: int) -> float | None:
        return next((step for step, valid, _ in found.curves.get(seed, []) if valid <= target), None)

    return Reached({seed: first(seed) for seed in ended}, limit)


def _answers(summary: Summary) -> Iterator[str]:
    """First the controls if most of the trained methods have some, or the blocks if the reference has one."""
    main = [found for found in summary.ordered if found.role == "main" and found.method.rates]
    controlled = {found.method.against for found in summary.results if found.role == "control"}
    compared = [_verdicts([(f, f.difference) for f in main if f is not summary.reference], summary.reference.label)]
    blocks = [_within(of, summary) for of in summary.blocks]
    compared = [*blocks, *compared] if summary.study.reference in summary.blocks else [*compared, *blocks]
    whose = summary[str(*controlled)].label if len(controlled) == 1 else "the controlled methods"
    controls = _verdicts([(f, f.control) for f in summary.by_quality if f.role == "control"], whose)
    yield from (controls, *compared) if 2 * len(controlled) > len(main) else (*compared, controls)


def _within(of: str, summary: Summary) -> str:
    """The comparable members of an equal-budget block."""
    members = [
        found for found in summary.by_quality if found.method.block == of and is_comparable(summary.ratio(found))
    ]
    found = _verdicts([(member, member.difference) for member in members], summary[of].label)
    return found and f"At the size of {summary[of].label}: {found}"


def _verdicts(found: Sequence[tuple[Result, Difference | None]], other: str) -> str:
    """One sentence: which methods are better than the other, not shown to differ, worse; the best first."""
    relations = {
        BETTER: ("better", f"than {other}"),
        NO_DIFFERENCE: ("not shown to differ", f"from {other}"),
        WORSE: ("worse", f"than {other}"),
        PRELIMINARY: (f"without a verdict, with fewer than {MIN_SEEDS} seeds", ""),
    }
    clauses = []
    for verdict, (relation, preposition) in relations.items():
        labels = [result.label for result, difference in found if difference and difference.verdict == verdict]
        if labels:
            verb = "is" if len(labels) == 1 else "are"
            clauses.append(f"{named(labels)} {verb} {relation} {'' if clauses else preposition}".strip())
    return f"{_capital('; '.join(clauses))}." if clauses else ""


def unfinished(summary: Summary) -> str:
    """How many runs are missing; empty for a complete study."""
    statuses = [status for found in summary.results for status in found.statuses.values()]
    n = statuses.count(MISSING)
    return f"{n:,} of {len(statuses):,} runs are missing: the study is not finished." if n else ""


def _labels(summary: Summary, is_one: Callable[[Result], Any]) -> str:
    return "; ".join(found.label for found in summary.results if is_one(found))


def _warnings(summary: Summary) -> Iterator[str]:
    if names := _labels(summary, lambda found: not found.has_improved):
        yield f"The best step is 0 with every seed, so the values are those before training: {names}."
    if names := _labels(summary, lambda found: found.lr_at_edge):
        yield f"A learning rate outside those tried may be better for: {names}."
    yield from (f"{text}." for row in summary.rows for text in row.get("left_out", ()))
    noise = max((found.mean("noise") or 0.0 for found in summary.results), default=0.0)
    if noise > MOST_NOISE:
        yield (
            f"Times are unreliable: two measurements of the same model differ by up to {noise:.0%}. Something else ran "
            "on the machine; measure again with another --out."
        )


def _limits(summary: Summary) -> Iterator[str]:
    study, results = summary.study, summary.results

    def is_odd(control: Result) -> bool:
        size = summary[control.method.against].trainable if control.method.against else 0
        return bool(size) and not LEAST_SHARE <= control.trainable / size <= 1 / LEAST_SHARE

    yield SIMULATED if any(found.method.kind == "quantum" for found in results) else ""
    yield from (found.method.report_note for found in results)
    yield f"One base, one data set, {study.training['steps']:,} steps: others may rank the methods differently."
    if summary.n_comparisons:
        yield (
            '"Better" and "worse" require that the 95 % interval of the difference, paired by seed, excludes 0 with at '
            f"least {MIN_SEEDS} seeds, after Holm's correction over {summary.n_comparisons} comparisons. Otherwise no "
            'difference is shown, which does not mean "equal".'
        )
        yield "Intervals cover the variation over seeds only, not over the choice of test data."
    yield from summary.warnings
    yield unfinished(summary)
    yield from study.data.notes
    lists: dict[str, Callable[[Result], Any]] = {
        f"Preliminary, with fewer than {MIN_SEEDS} seeds": lambda f: f.metric and f.metric.n < MIN_SEEDS,
        "Favored by no verdict, because seeds failed or diverged": lambda f: f.has_failures,
        "Trained with different learning rates; run the study again to finish it": lambda f: (
            len({row["lr"] for row in f.successes.values()}) > 1
        ),
        "Controls with another number of trainable parameters than their method": is_odd,
        "Outside 80 to 100 % of the budget of their block, and not in the answer": lambda f: (
            not is_comparable(summary.ratio(f))
        ),
    }
    yield from (f"{text}: {names}." for text, is_one in lists.items() if (names := _labels(summary, is_one)))


def published_of(summary: Summary) -> list[tuple[Result, Any, Stats | None]]:
    """Each published value with the method, and what was measured here in the unit of the report."""
    found = []
    for result in summary.results:
        for one in result.method.published:
            metric = one.metric or summary.study.metric
            measured = result.stats(metric)
            if metric == TRAINABLE:  # the plan has counted it
                measured = describe({0: float(result.trainable)})
            found.append((result, one, measured and measured.times(METRICS[metric].factor)))
    return found


def named(labels: Sequence[str]) -> str:
    """ "A, B and C"; of many labels the first ones."""
    labels = [f'"{label}"' if "," in label else label for label in labels]
    if len(labels) > _MOST_NAMED:
        labels = [*labels[: _MOST_NAMED - 1], f"{len(labels) - _MOST_NAMED + 1} others"]
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def _capital(text: str) -> str:
    """The text with its first letter in upper case; the others stay: BLEU."""
    return text[:1].upper() + text[1:]
