"""metrics.jsonl: one JSON object per line."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError
from qpeft.files import filled, open_own, parse_json, sync, write_text
from qpeft.training.tasks import Score


class MetricsLog:
    """Appends rows to metrics.jsonl. After a resume it has exactly the rows up to the resumed step.

    Every row has `step`, and `seconds`: the time since the run began, without interruptions.
    """

    def __init__(self, path: Path, step: int | None):
        """Keep the rows up to `step`, or none for None, and remove a line that a kill left incomplete.

        Raises CheckpointError if a row up to `step` is damaged, or if the row of step 0 is missing.
        """
        kept = [] if step is None else _rows_up_to(step, path)
        write_text(path, "".join(map(_line, kept)))
        self._path = path
        self._began = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.monotonic() - self._began

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one row; NaN and infinity, which JSON lacks, become null."""
        with os.fdopen(open_own(self._path, os.O_APPEND), "a", encoding="utf-8") as file:
            file.write(_line({"step": step, **values, "seconds": round(self.seconds, 3)}))

    def sync(self) -> None:
        """Wait until all rows are on disk, so that a checkpoint saved later always finds them."""
        sync(self._path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics.jsonl; none if there is no file. Raises CheckpointError if it is damaged."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise CheckpointError(_damaged(path, "it is not a file"))
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.endswith(b"\n")]


def read_scores(path: Path, score_class: type[Score]) -> list[Score]:
    """The validation scores of a metrics.jsonl, in order. Raises CheckpointError if one is not a number."""
    rows = [row for row in read_rows(path) if "eval_loss" in row]

    def score(row: dict[str, Any]) -> Score:
        known = [f.name for f in fields(score_class) if f.default is MISSING or f"eval_{f.name}" in row]
        return filled(score_class, {name: row[f"eval_{name}"] for name in known})

    try:
        return [score(row) for row in rows]
    except (KeyError, TypeError) as error:
        raise CheckpointError(_damaged(path, f"a score: {error}")) from error


def read_seconds(path: Path) -> float:
    """The time of the last row."""
    return read_rows(path)[-1]["seconds"]


def _rows_up_to(step: int, path: Path) -> list[dict[str, Any]]:
    try:
        kept = [row for row in read_rows(path) if row["step"] <= step and row["seconds"] >= 0]
    except (KeyError, TypeError) as error:
        raise CheckpointError(_damaged(path, f"a row lacks step or seconds: {error}")) from error
    if not kept or kept[0]["step"] != 0:
        raise CheckpointError(_damaged(path, "its first rows are missing"))
    return kept


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise CheckpointError(_damaged(path, f"line {number}: {error}")) from error
    if not isinstance(row, dict):
        raise CheckpointError(_damaged(path, f"line {number} is not an object"))
    return row


def _damaged(path: Path, how: str) -> str:
    return (
        f"{path} is damaged ({how}). Choose another folder for the run, or delete {path.parent / 'checkpoints'} to "
        "start again from step 0"
    )


def _line(row: dict[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
