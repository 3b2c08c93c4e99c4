"""metrics.jsonl: one JSON object a line, flushed as it is written."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from qpeft.files import write_text
from qpeft.training.metrics import LanguageModelScore


class MetricsLog:
    """Appends rows to metrics.jsonl; opened after a resume, it holds exactly what the resumed step knew.

    Every row has `step` and `seconds`, the time since the run began, without its interruptions.
    """

    def __init__(self, path: Path, step: int | None):
        """Keep the rows up to `step`, none without a step; a line cut off by a kill goes too."""
        kept = [row for row in read_rows(path) if step is not None and row["step"] <= step]
        write_text(path, "".join(map(_line, kept)))
        self._path = path
        self._began = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.monotonic() - self._began

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one row; numbers that JSON lacks become null."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **values, "seconds": round(self.seconds, 3)}))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics.jsonl; none if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def read_scores(path: Path) -> list[LanguageModelScore]:
    """The validation scores of a metrics.jsonl, in their order."""
    rows = [row for row in read_rows(path) if "eval_loss" in row]
    return [LanguageModelScore(row["eval_nats"], row["eval_n_tokens"], row["eval_n_bytes"]) for row in rows]


def read_seconds(path: Path) -> float:
    """The time of the last row."""
    return read_rows(path)[-1]["seconds"]


def _line(row: dict[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
