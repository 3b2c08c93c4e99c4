"""The results of a study, computed from its plan and rows alone: the only source of tables, charts
and page.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

from qpeft.errors import InputError
from qpeft.files import parse_json
from qpeft_lab.compare.metrics import METRICS, Metric
from qpeft_lab.compare.rate_search import Edge, RateSearch
from qpeft_lab.compare.rows import Row, cell_id, read_rows, succeeded, unsealed_row
from qpeft_lab.compare.stats import (
    BETTER,
    MIN_SEEDS,
    NO_DIFFERENCE,
    PRELIMINARY,
    WORSE,
    Difference,
    Stats,
    compare,
    describe,
)
from qpeft_lab.compare.study import (
    LEAST_SHARE,
    PlannedMethod,
    PlannedStudy,
    is_comparable,
    read_study,
)
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.files import SEAL, json_line, sealed, unsealed

MISSING = "missing"
SIMULATED = (
    "All quantum circuits are simulated on classical hardware; no quantum speed-up is shown or"
    " implied."
)
MOST_NOISE = 0.1
_NOT_PUBLISHED = ("texts", "traceback")
_MOST_NAMED = 6  # methods in a sentence


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method: its rows, and what follows from them."""

    method: PlannedMethod
    seeds: dict[int, Row | None]  # None for a row that does not exist yet
    trials: dict[float, Row | None]  # by learning rate; empty where a single one was used
    cost: Row | None
    search: RateSearch
    metric: Stats | None
    difference: Difference | None = None  # from the method that it is compared with

    @property
    def key(self) -> str:
        return self.method.key

    @property
    def label(self) -> str:
        return self.method.label

    @cached_property
    def successes(self) -> dict[int, Row]:
        return {
            seed: row for seed, row in self.seeds.items() if self._is_final(row) and succeeded(row)
        }

    @property
    def statuses(self) -> dict[int, str]:
        return {
            seed: row["status"] if self._is_final(row) else MISSING
            for seed, row in self.seeds.items()
        }

    def _is_final(self, row: Row | None) -> TypeGuard[Row]:
        """Whether it is a row at the learning rate that the trials chose; it is not if a trial that
        had failed was repeated, and the seeds were not yet.
        """
        return row is not None and row.get("lr") == self.search.chosen

    @property
    def lost(self) -> str:
        """ "1 diverged, 2 missing": the seeds that are not in the means."""
        counts = Counter(status for status in self.statuses.values() if status != "success")
        if self._n_without_metric:
            counts["without the metric"] = self._n_without_metric
        return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))

    @property
    def _n_without_metric(self) -> int:
        """Seeds that ran and lack the metric that others have, such as a correlation with equal
        predictions.
        """
        return 0 if self.metric is None else len(self.successes.keys() - self.metric.values.keys())

    @property
    def has_failures(self) -> bool:
        """Whether a seed failed or diverged, or lacks the metric that others have."""
        did_not_end = set(self.statuses.values()) - {"success", MISSING}
        return bool(self._n_without_metric or did_not_end)

    @property
    def rows(self) -> list[Row]:
        """Every row once."""
        rows = [*self.seeds.values(), *self.trials.values(), self.cost]
        return list({id(row): row for row in rows if row is not None}.values())

    @property
    def lr(self) -> float | None:
        """The learning rate of the seeds."""
        return self.search.chosen

    @property
    def lr_at_edge(self) -> Edge | None:
        """Whether the learning rate is the lowest or highest of those tried."""
        return self.search.edge if self.search.best else None

    @property
    def has_improved(self) -> bool:
        """False if training lowered the validation loss with no seed: the results are those before
        training.
        """
        steps = [row.get("best_step") for row in self.successes.values()]
        return not self.lr or not steps or any(steps)

    def stats(self, name: str) -> Stats | None:
        """A measurement over the seeds that have it; those of the cost cell have one value."""
        values = {
            seed: row[name] for seed, row in self.successes.items() if row.get(name) is not None
        }
        if not values and self.cost is not None and self.cost.get(name) is not None:
            values = {self.cost["seed"]: self.cost[name]}
        return describe(values)

    def mean(self, name: str) -> float | None:
        stats = self.stats(name)
        return None if stats is None else stats.mean


@dataclass(frozen=True)
class Summary:
    """The results of a study, as far as its rows go."""

    study: PlannedStudy
    results: list[Result]
    n_comparisons: int  # in the family of Holm's correction

    def __getitem__(self, key: str) -> Result:
        return next(result for result in self.results if result.key == key)

    @property
    def reference(self) -> Result:
        return self[self.study.reference]

    @property
    def metric(self) -> Metric:
        """How the study's metric is shown."""
        return self.shown(self.study.metric)

    def shown(self, name: str) -> Metric:
        """How a metric of METRICS is shown."""
        metric = METRICS[name]
        if name == "test_loss":
            return metric._replace(unit=TASKS[self.study.run.task].unit)
        return metric

    @property
    def by_quality(self) -> list[Result]:
        """All methods, the best first; those without a result last."""
        sign = 1 if self.study.lower_is_better else -1

        def badness(result: Result) -> float:
            return math.inf if result.metric is None else sign * result.metric.mean

        return sorted(self.results, key=badness)

    @property
    def ordered(self) -> list[Result]:
        """Main methods, the best first, each followed by its controls and by those at its size."""
        main = [result for result in self.by_quality if result.method.role == "main"]
        others = [result for result in self.by_quality if result.method.role != "main"]
        ordered: list[Result] = []
        for result in main:
            ordered.append(result)
            for other in others:
                if result.key in (other.method.against, other.method.at_size_of):
                    ordered.append(other)
        return ordered + [other for other in others if other not in ordered]

    def ratio(self, result: Result) -> float:
        """Its size as a share of that which it shall have."""
        of = result.method.at_size_of
        return result.method.trainable / self[of].method.trainable if of else 1.0

    def compared_with(self, result: Result) -> str:
        """The label of what it is compared with."""
        if result.difference is not None:
            return self[result.difference.to].label
        return "the reference" if result.key == self.study.reference else ""

    @property
    def rows(self) -> list[Row]:
        """Every row of the study, method by method."""
        return [row for result in self.results for row in result.rows]

    @property
    def failures(self) -> list[Row]:
        """Every row that is no success, trials of learning rates included."""
        return [row for row in self.rows if not succeeded(row)]

    @cached_property
    def answers(self) -> list[str]:
        """The answer to the study's question, first what the study is about, in sentences without
        numbers.
        """
        return [*filter(None, _answers(self))]

    @cached_property
    def warnings(self) -> list[str]:
        """What the study or its measurements may lack; the command prints it as well."""
        return list(dict.fromkeys(filter(None, _warnings(self))))

    @cached_property
    def limits(self) -> list[str]:
        """What the study does not show, the most important first."""
        return list(dict.fromkeys(filter(None, _limits(self))))


def load(path: Path) -> Summary:
    """The results in the folder of a study, or in a published file.

    Raises InputError or CheckpointError where there is no valid study.
    """
    if not path.is_file():
        return summarise(read_study(path), read_rows(path))
    try:
        lines = lzma.decompress(path.read_bytes()).splitlines()
        study, *read = map(parse_json, lines)
        rows = [unsealed_row(row, must_be_sealed=SEAL in study) for row in read]
        planned = PlannedStudy.model_validate(unsealed(study))
        return summarise(planned, {cell_id(row): row for row in rows})
    except (lzma.LZMAError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is no file of results ({error}); give one of results/, or the --out folder of a run"
        ) from error


def publish(folder: Path, file: Path) -> None:
    """Write the study and its rows in `folder`, without generated texts, as one compressed file."""
    summary = load(folder)
    rows = [
        {name: value for name, value in row.items() if name not in _NOT_PUBLISHED}
        for row in summary.rows
    ]
    lines = [json_line(sealed(each)) for each in (summary.study.model_dump(), *rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def summarise(study: PlannedStudy, rows: Mapping[str, Row]) -> Summary:
    """The results of the study; `rows` by cell_id."""
    results = [_read(study, method, rows) for method in study.methods]
    by_key = {result.key: result for result in results}
    values = {key: result.metric.values if result.metric else {} for key, result in by_key.items()}
    failed = {key for key, result in by_key.items() if result.has_failures}
    others: dict[str, str] = {}
    for method in study.methods:
        other = method.against or method.at_size_of or study.reference
        if other != method.key:  # the reference is compared with none
            others[method.key] = other
    differences = compare(others, values, failed, study.lower_is_better)
    n_comparisons = sum(difference.p is not None for difference in differences.values())
    compared = [replace(result, difference=differences.get(result.key)) for result in results]
    return Summary(study, compared, n_comparisons)


def _read(study: PlannedStudy, method: PlannedMethod, rows: Mapping[str, Row]) -> Result:
    find = partial(study.row_of, method, rows)
    search = study.search(method, rows)
    seeds = {seed: find(f"seed{seed}") for seed in study.seeds}
    if study.is_deterministic(method):  # the one result counts for every seed
        seeds = dict.fromkeys(seeds, next((row for row in seeds.values() if row is not None), None))
    trials: dict[float, Row | None] = {}
    for rate in search.rates if len(method.rates) > 1 else []:
        row = find(f"lr{rate:g}")
        # rates beyond the grid follow from results, and may be of an earlier search
        if row is not None or rate in method.rates:
            trials[rate] = row
    cost = find("cost")
    if cost is not None and cost.get("reference", study.reference_hash) != study.reference_hash:
        cost = None  # its ratios are those to a reference that the study had before
    result = Result(
        method=method, seeds=seeds, trials=trials, cost=cost, search=search, metric=None
    )
    return replace(result, metric=result.stats(study.metric) if result.successes else None)


def _answers(summary: Summary) -> Iterator[str]:
    """First the controls if most of the trained methods have some, or those at its size if the
    reference has some.
    """
    trained = [result for result in summary.by_quality if result.method.rates]
    main = [result for result in trained if result.method.role == "main"]
    controls = [
        result
        for result in trained
        if result.method.role == "control" and is_comparable(summary.ratio(result))
    ]
    controlled = {result.method.against for result in controls}
    compared = [_verdicts(main, summary.reference.label)]
    sizes = [result.method.at_size_of for result in summary.results if result.method.at_size_of]
    for of in dict.fromkeys(sizes):
        at_size = [result for result in trained if result.method.at_size_of == of]
        near = [result for result in at_size if is_comparable(summary.ratio(result))]
        text = _verdicts(near, summary[of].label)
        if text:
            place = 0 if of == summary.study.reference else len(compared)
            compared.insert(place, f"At the size of {summary[of].label}: {text}")
    whose = summary[str(*controlled)].label if len(controlled) == 1 else "the controlled methods"
    answer = _verdicts(controls, whose)
    yield from (answer, *compared) if 2 * len(controlled) > len(main) else (*compared, answer)


def _verdicts(results: Sequence[Result], other: str) -> str:
    """One sentence: which methods are better than the other, not shown to differ, worse; the best
    first.
    """
    relations = {
        BETTER: ("better", f"than {other}"),
        NO_DIFFERENCE: ("not shown to differ", f"from {other}"),
        WORSE: ("worse", f"than {other}"),
        PRELIMINARY: (f"without a verdict, with fewer than {MIN_SEEDS} seeds to compare", ""),
    }
    clauses = []
    for verdict, (relation, preposition) in relations.items():
        labels = [
            result.label
            for result in results
            if result.difference is not None and result.difference.verdict == verdict
        ]
        if labels:
            verb = "is" if len(labels) == 1 else "are"
            end = "" if clauses else preposition
            clauses.append(f"{named(labels)} {verb} {relation} {end}".strip())
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _where(summary: Summary, text: str, holds: Callable[[Result], Any]) -> str:
    """The text with the labels of the methods for which it holds; empty if there are none."""
    labels = "; ".join(result.label for result in summary.results if holds(result))
    return f"{text}: {labels}." if labels else ""


def _warnings(summary: Summary) -> Iterator[str]:
    statuses = [status for result in summary.results for status in result.statuses.values()]
    n_missing = statuses.count(MISSING)
    if n_missing:
        yield f"{n_missing:,} of {len(statuses):,} runs are missing: the study is not finished."
    before = "The best step is 0 with every seed, so the values are those before training"
    yield _where(summary, before, lambda result: not result.has_improved)
    yield _where(
        summary,
        "A learning rate outside those tried may be better for",
        lambda result: result.lr_at_edge,
    )
    yield from (f"{text}." for row in summary.rows for text in row.get("left_out", ()))
    noise = max((result.mean("noise") or 0.0 for result in summary.results), default=0.0)
    if noise > MOST_NOISE:
        yield (
            f"Times are unreliable: two measurements of the same model differ by up to {noise:.0%}."
            " Something else ran on the machine; measure again with another --out."
        )


def _limits(summary: Summary) -> Iterator[str]:
    study = summary.study
    results = summary.results

    def is_odd(control: Result) -> bool:
        size = summary[control.method.against].method.trainable if control.method.against else 0
        return bool(size) and not LEAST_SHARE <= control.method.trainable / size <= 1 / LEAST_SHARE

    yield SIMULATED if any(result.method.kind == "quantum" for result in results) else ""
    yield from (result.method.note for result in results)
    yield (
        f"One base, one data set, {study.run.steps:,} steps: others may rank the methods"
        " differently."
    )
    if summary.n_comparisons:
        yield (
            '"Better" and "worse" require that the 95 % interval of the difference, paired by seed,'
            " excludes 0 with at "
            f"least {MIN_SEEDS} seeds, after Holm's correction over {summary.n_comparisons}"
            " comparisons. Otherwise no "
            'difference is shown, which does not mean "equal".'
        )
        yield "Intervals cover the variation over seeds only, not over the choice of test data."
    yield from summary.warnings
    yield from study.data_notes
    yield _where(
        summary,
        "Favored by no verdict, because seeds failed or diverged, or lack the metric",
        lambda result: result.has_failures,
    )
    yield _where(
        summary, "Controls with another number of trainable parameters than their method", is_odd
    )
    outside = "Outside 80 to 100 % of the size that they shall have, and not in the answer"
    yield _where(summary, outside, lambda result: not is_comparable(summary.ratio(result)))


def named(labels: Sequence[str]) -> str:
    """ "A, B and C"; of many labels the first ones."""
    labels = [f'"{label}"' if "," in label else label for label in labels]
    if len(labels) > _MOST_NAMED:
        labels = [*labels[: _MOST_NAMED - 1], f"{len(labels) - _MOST_NAMED + 1} others"]
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))
