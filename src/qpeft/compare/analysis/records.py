"""The rows of a study, method by method; only those with a method's present hash count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from qpeft.compare.analysis.statistics import Stats, describe
from qpeft.compare.rate_search import RateSearch
from qpeft.compare.resolved import ResolvedMethod, ResolvedStudy
from qpeft.compare.rows import Curve, Row

MISSING = "missing"
FAILURES = {"failed", "diverged", "oom", "timeout", "skipped"}
_SECTIONS = ("train", "quality", "cost", "convergence", "capacity")
_OF_TRAIN = ("train.seconds", "train.step_ms")


@dataclass(frozen=True)
class MethodRows:
    """The rows of one method: seeds, trials of learning rates, cost; None for a row that does not exist yet."""

    seeds: Mapping[int, Row | None]
    trials: list[tuple[float, Row | None]]  # by learning rate, in the order of the grid
    cost: Row | None
    search: RateSearch

    @property
    def present(self) -> list[Row]:
        """Every row once."""
        rows = [*self.seeds.values(), *(row for _, row in self.trials), self.cost]
        return list({id(row): row for row in rows if row is not None}.values())

    @property
    def successes(self) -> dict[int, Row]:
        return {seed: row for seed, row in self.seeds.items() if row is not None and row.succeeded}

    @property
    def statuses(self) -> dict[int, str]:
        return {seed: MISSING if row is None else row.status for seed, row in self.seeds.items()}

    @property
    def has_failures(self) -> bool:
        """Whether a seed failed or diverged."""
        return not FAILURES.isdisjoint(self.statuses.values())

    @property
    def curves(self) -> dict[int, Curve]:
        """Those of all seeds, unsuccessful ones included."""
        return {seed: row.train.curve for seed, row in self.seeds.items() if row is not None and row.train.curve}

    @property
    def on_mixed_hardware(self) -> bool:
        """Whether the times of the seeds have no common mean."""
        return len({hardware(row) for row in self.successes.values()}) > 1


def read_method(study: ResolvedStudy, method: ResolvedMethod, rows: Mapping[str, Row]) -> MethodRows:
    """The rows of `method` among `rows`, which are by cell_id. A deterministic result counts for every seed."""
    find = partial(study.row_of, method, rows)
    search = study.search(method, rows)
    seeds = {seed: find(f"seed{seed}", seed, search.rates) for seed in study.seeds}
    found = [row for row in seeds.values() if row is not None]
    if found and study.is_deterministic(method):
        seeds = dict.fromkeys(seeds, found[0])
    tried = search.rates if len(method.rates) > 1 else []  # a single learning rate is not tuned
    trials = [(rate, study.trial_of(method, rows, rate)) for rate in tried]
    trials = [(rate, row) for rate, row in trials if row is not None or rate in method.rates]
    return MethodRows(seeds, trials, find("cost", study.seeds[0], search.rates), search)


def measurements(row: Row) -> dict[str, float]:
    """Every measurement of a row by dotted name ("quality.test_ppl"); no lists, flags or nulls."""
    values = flatten({name: getattr(row, name).to_json() for name in _SECTIONS})
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if not name.startswith("train.") or name.startswith(_OF_TRAIN)
    }


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; anything else, lists too, is a leaf."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat |= flatten(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return flat


def describe_measurements(rows: MethodRows) -> dict[str, Stats]:
    """Every measurement by dotted name, over the seeds that have it; no times where the hardware differs."""
    by_name: dict[str, dict[int, float]] = {}
    for seed, row in rows.successes.items():
        for name, value in measurements(row).items():
            by_name.setdefault(name, {})[seed] = value
    found = {
        name: describe(values) for name, values in by_name.items() if not (rows.on_mixed_hardware and is_timing(name))
    }
    return {name: stats for name, stats in found.items() if stats is not None}


def hardware(row: Row) -> str | None:
    """What the row ran on, in words: times are comparable only where it is the same."""
    device, n = row.env.device, row.env.threads
    return device if device is None or n is None else f"{device}, {n} thread{'s' * (n != 1)}"


def is_timing(name: str) -> bool:
    """True for measurements that another machine would change."""
    return any(word in name for word in ("seconds", "_ms", "tok_s", "peak_mem", "overhead_pct"))
