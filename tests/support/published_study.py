"""The published study `survey` as a folder whose study and rows a test may change."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from folders import read_rows, write_rows

from qpeft_lab.compare.report import write_outputs
from qpeft_lab.compare.rows import ROWS, Row
from qpeft_lab.files import SEAL

FILE = Path(__file__).parents[2] / "results" / "survey" / "grimm.jsonl.xz"


def write_study(folder: Path) -> Path:
    """The study with failures: a seed of `sora` diverged, one of `prefix_mlp` failed, two of
    `prefix` are missing.
    """
    study, *rows = lzma.decompress(FILE.read_bytes()).decode().splitlines(keepends=True)
    folder.mkdir()
    (folder / "study.json").write_text(study, encoding="utf-8")
    (folder / ROWS).write_text("".join(rows), encoding="utf-8")
    edit_rows(folder, lambda row: row.update(status="diverged"), "sora", "seed4")
    failed = {
        "status": "failed",
        "error_type": "RuntimeError",
        "error": "a planted | crash in /home/me/x.py",
    }
    edit_rows(folder, lambda row: row.update(failed, traceback="line 1"), "prefix_mlp", "seed3")
    drop_rows(folder, "prefix", "seed[34]")
    return folder


def stored_rows(folder: Path, method: str = "*", name: str = "*") -> list[Row]:
    """The rows of the methods and names that match these patterns."""
    return [row for row in read_rows(folder / ROWS) if _matches(row, method, name)]


def edit_rows(
    folder: Path, change: Callable[[Row], Any], method: str = "*", name: str = "*"
) -> None:
    """Apply `change` to the rows that match. All become rows without a seal, as of qpeft 0.2."""
    rows = stored_rows(folder)
    for row in rows:
        row.pop(SEAL, None)
        if _matches(row, method, name):
            change(row)
    write_rows(folder / ROWS, rows)


def drop_rows(folder: Path, method: str = "*", name: str = "*") -> None:
    """Remove the rows that match."""
    kept = [row for row in stored_rows(folder) if not _matches(row, method, name)]
    write_rows(folder / ROWS, kept)


def edit_study(
    folder: Path, change: Callable[[dict[str, Any], dict[str, dict[str, Any]]], Any]
) -> None:
    """Apply `change` to the study and its methods by key. It is without a seal then, as of qpeft
    0.2.
    """
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    study.pop(SEAL, None)
    change(study, {method["key"]: method for method in study["methods"]})
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")


def score_classes(study: dict[str, Any], _: object) -> None:
    study["run"]["task"], study["metric"] = "text-classification", "test_accuracy"


def write_report_of(folder: Path) -> Path:
    """Write all outputs; returns the report."""
    write_outputs(folder)
    return folder / "report.html"


def _matches(row: Row, method: str, name: str) -> bool:
    return fnmatch(row["method"], method) and fnmatch(row["name"], name)
