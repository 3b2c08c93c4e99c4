"""The rows of a study, method by method; only those with a method's present hash count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qpeft.compare.analysis.statistics import Stats, describe
from qpeft.compare.resolved import ResolvedMethod, ResolvedStudy
from qpeft.compare.rows import Row

MISSING = "missing"
FAILURES = ("failed", "diverged", "oom", "timeout", "skipped")

_SECTIONS = ("quality", "cost", "convergence", "capacity")
_OF_TRAIN = ("seconds", "step_ms")


@dataclass(frozen=True)
class MethodRows:
    """The rows of one method: seeds, trials of learning rates, cost; None for a row that does not exist yet."""

    seeds: Mapping[int, Row | None]
    trials: list[tuple[float, Row | None]]  # by rate, in the order of the grid
    cost: Row | None

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
        """True if a seed failed or diverged."""
        return any(status in FAILURES for status in self.statuses.values())


def read_method(study: ResolvedStudy, method: ResolvedMethod, rows: Mapping[str, Row]) -> MethodRows:
    """The rows of `method` among `rows`, which are by cell_id. A deterministic result counts for every seed."""

    def find(name: str) -> Row | None:
        return rows.get(study.cell_id(method, name))

    seeds = {seed: find(f"seed{seed}") for seed in study.seeds}
    found = [row for row in seeds.values() if row is not None]
    if found and study.is_deterministic(method):
        seeds = dict.fromkeys(seeds, found[0])
    tried = method.rates if len(method.rates) > 1 else []  # a single learning rate is not tuned
    return MethodRows(seeds, [(rate, find(f"lr{rate:g}")) for rate in tried], find("cost"))


def numbers(row: Row) -> dict[str, float]:
    """Every measurement of a row by dotted name ("quality.test_ppl"); no lists, flags or nulls."""
    train = {name: value for name, value in row.train.to_json().items() if name in _OF_TRAIN}
    sections = {"train": train} | {name: getattr(row, name).to_json() for name in _SECTIONS}
    return {name: value for name, value in flatten(sections).items() if _is_number(value)}


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; anything else, lists too, is a leaf."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat |= flatten(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return flat


def describe_figures(rows: Mapping[int, Row]) -> dict[str, Stats]:
    """Every figure of the rows by dotted name, over the seeds that have it.

    Where the seeds ran on different hardware the measured times are left out: they have no common mean.
    """
    by_seed = {seed: numbers(row) for seed, row in rows.items()}
    names = dict.fromkeys(name for figures in by_seed.values() for name in figures)
    mixed = on_mixed_hardware(rows)
    figures: dict[str, Stats] = {}
    for name in names:
        stats = describe({seed: found[name] for seed, found in by_seed.items() if name in found})
        if stats is not None and not (mixed and is_timing(name)):
            figures[name] = stats
    return figures


def hardware(row: Row) -> str | None:
    """What the row ran on, in words: times are comparable only where it is the same."""
    device, n = row.env.device, row.env.threads
    return device if device is None or n is None else f"{device}, {n} thread{'s' * (n != 1)}"


def on_mixed_hardware(rows: Mapping[int, Row]) -> bool:
    """True if the times of these rows have no common mean."""
    return len({hardware(row) for row in rows.values()}) > 1


def is_timing(name: str) -> bool:
    """True for figures that another machine would change."""
    return any(word in name for word in ("seconds", "_ms", "tok_s", "peak_mem", "overhead_pct"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
