"""A study's folder, read: its plan and, method by method, the rows that belong to it.

Only rows under a method's present hash count; those of an older config stay where they are and are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.compare.analysis.statistics import Stats, describe
from qpeft.compare.rows import SCHEMA, Row, read_row, row_path, without_nan
from qpeft.errors import CheckpointError, InputError
from qpeft.files import read_json

MISSING = "missing"
_NEEDED = {"study", "task", "metric", "reference", "methods", "blocks", "seeds"}
FAILURES = ("failed", "diverged", "oom", "timeout", "skipped")

_SECTIONS = ("quality", "cost", "convergence", "capacity")
_OF_TRAIN = ("seconds", "step_ms")


@dataclass(frozen=True)
class MethodRows:
    """The rows of one method: its seeds, its trials of rates, its cost; what is not there yet is None."""

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
        return {seed: row for seed, row in self.seeds.items() if row is not None and row["status"] == "success"}

    @property
    def statuses(self) -> dict[int, str]:
        return {seed: MISSING if row is None else row["status"] for seed, row in self.seeds.items()}

    @property
    def has_failures(self) -> bool:
        """True if a seed failed or diverged."""
        return any(status in FAILURES for status in self.statuses.values())


def read_study(folder: Path) -> dict[str, Any]:
    """The resolved study. Raises InputError where there is none, CheckpointError for a damaged or foreign one."""
    path = folder / "study.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no study: study.json is not there; give the --out folder of `qpeft compare run`"
        )
    try:
        study = read_json(path)
        found = study["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); run `qpeft compare run` again with its command") from error
    if found != SCHEMA:
        raise CheckpointError(f"{path} has schema {found}, this qpeft reads {SCHEMA}; use the qpeft that wrote it")
    if missing := _NEEDED - study.keys():
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; run `qpeft compare run` again")
    return study


def read_method(folder: Path, study: Mapping[str, Any], method: Mapping[str, Any]) -> MethodRows:
    """The rows of `method`. A language model that nothing trains is exact: its row stands under every seed."""
    place = row_path(folder, study["study"], method["key"], method["hash"], "cost")
    seeds = {seed: _read(place.with_name(f"seed{seed}.json")) for seed in study["seeds"]}
    found = [row for row in seeds.values() if row is not None]
    if not method["rates"] and found and study["task"] == "causal-lm":
        seeds = dict.fromkeys(seeds, found[0])
    return MethodRows(seeds, list(_trials(place.parent, method["rates"])), _read(place))


def numbers(row: Row) -> dict[str, float]:
    """Every figure of a row by dotted name ("quality.test_ppl"); no lists, no flags, no nulls."""
    train = {name: row["train"][name] for name in _OF_TRAIN if name in row["train"]}
    sections = {"train": train} | {name: row[name] for name in _SECTIONS}
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
    device, n = row["env"].get("device"), row["env"].get("threads")
    return device if device is None or n is None else f"{device}, {n} thread{'s' * (n != 1)}"


def on_mixed_hardware(rows: Mapping[int, Row]) -> bool:
    """True if the times of these rows have no common mean."""
    return len({hardware(row) for row in rows.values()}) > 1


def is_timing(name: str) -> bool:
    """True for figures that another machine would change."""
    return any(word in name for word in ("seconds", "_ms", "tok_s", "peak_mem", "overhead_pct"))


def _read(path: Path) -> Row | None:
    """The row with null for what is not finite, whoever wrote it."""
    row = read_row(path)
    return None if row is None else without_nan(row)


def _trials(place: Path, rates: list[float]) -> Iterator[tuple[float, Row | None]]:
    if len(rates) < 2:
        return  # a single rate is taken untried
    found = [(_rate(path), path) for path in sorted(place.glob("lr*.json"))]
    for rate in rates:
        paths = [path for lr, path in found if math.isclose(lr, rate, rel_tol=1e-6)]
        yield rate, _read(paths[0]) if paths else None


def _rate(path: Path) -> float:
    try:
        return float(path.stem.removeprefix("lr"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no trial of a rate; names are like lr0.001.json: take the file away"
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
