"""Result rows: what was measured of each cell of a study. Tables and report are made from them
alone.

    DIR/rows.jsonl    one line per finished cell, appended by the one process that runs the study

A row is a flat dict. It is the row of a cell by its `cell_id`, STUDY/METHOD/HASH/NAME, where NAME
is `seed0` for a training run with one seed, `lr0.001` for a trial of a learning rate, or `cost` for
time and memory measured alone on the machine. The hash covers the method's settings with its grid
of learning rates, the base, the data and the training, so that a changed cell never matches an old
row. A later line of the same cell replaces an earlier one. An incomplete last line, which a kill
leaves, is ignored; one that lacks only its line break counts.

    identity      study method hash name role seed lr
    outcome       status (success, diverged, failed) error error_type traceback
    training      curve ([[step, validation loss, seconds], ...]) seconds valid_loss best_step ...
    test          test_loss test_losses (of blocks) test_accuracy bleu ..., at the step of the lowest validation loss
    adapter       params_trainable params_deployed bytes_stored rank_numerical rank_effective
                  angles_moved angles_moved_most (radians, from the initial values) ...
    cost          step_ms step_ratio peak_mem_bytes ...
    machine       device threads python torch ...

Numbers have full precision, but for `test_losses`, which have three decimals. A number that is not
finite is null. `seal` is a hash of the other fields: a row that was edited is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qpeft.files import whole_lines, write_text
from qpeft_lab.files import SEAL, json_line, read_json_lines, sealed, unsealed

ROWS = "rows.jsonl"
Row = dict[str, Any]

_IDENTITY = {
    "study": str,
    "method": str,
    "hash": str,
    "name": str,
    "role": str,
    "seed": int,
    "status": str,
}


def cell_id(row: Row) -> str:
    """The identity of a row's cell; `method` is the study's key of the method."""
    return f"{row['study']}/{row['method']}/{row['hash']}/{row['name']}"


def succeeded(row: Row | None) -> bool:
    return row is not None and row["status"] == "success"


def is_failure(row: Row) -> bool:
    """Whether the cell failed. A trial that diverged did not: its learning rate is too high."""
    return not succeeded(row) and (row["role"], row["status"]) != ("tuning", "diverged")


def read_rows(folder: Path) -> dict[str, Row]:
    """All rows of a study's folder, by `cell_id`. Raises CheckpointError for a damaged line."""
    must_be_sealed = False

    def is_valid(row: Row) -> bool:
        nonlocal must_be_sealed
        unsealed_row(row, must_be_sealed)
        must_be_sealed |= SEAL in row  # rows of qpeft 0.2 come first
        return all(isinstance(row[name], kind) for name, kind in _IDENTITY.items())

    rows = read_json_lines(folder / ROWS, is_valid, "delete the line, and its cell runs again")
    return {cell_id(row): unsealed_row(row) for row in rows}


def unsealed_row(row: Row, must_be_sealed: bool = False) -> Row:
    """The row without its seal. Raises ValueError, with its `cell_id`, if it was edited."""
    try:
        return unsealed(row, must_be_sealed)
    except ValueError as error:
        raise ValueError(f"{cell_id(row)}: {error}") from error


class RowFile:
    """The rows of a study's folder while one process, which holds the folder's lock, runs the
    study.
    """

    def __init__(self, folder: Path):
        """Read the rows, and remove the incomplete last line of a killed run, or end a complete
        one. Raises CheckpointError.
        """
        self._path = folder / ROWS
        self.rows = read_rows(folder)
        text = self._path.read_bytes() if self._path.exists() else b""
        if text and not text.endswith(b"\n"):
            write_text(self._path, whole_lines(text).decode())

    def append(self, row: Row) -> None:
        """Add the row of a cell; it is on the disk when this returns."""
        line = json_line(sealed(row))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows[cell_id(row)] = unsealed(json.loads(line))  # as the next run reads it
