"""Result rows: one JSON file per cell, whole or absent; everything else is made from them.

    DIR/rows/STUDY/METHOD/CONFIG_HASH/seed0.json        a training with one seed (roles main, equal_budget, control)
                                      lr0.001.json      a trial of a learning rate (role tuning)
                                      cost.json         time and memory, measured alone on the machine (role cost)

A row has the keys of `empty_row`. Numbers stand at full precision; NaN and infinity are null, and every null figure of
`quality`, `cost` and `capacity` has its reason under `null_reasons`, by dotted name. The hash is over the method's
config with its grid of rates, the base, the data and the training, so that a change never meets an old row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError
from qpeft.files import read_json, write_text

SCHEMA = 1

Row = dict[str, Any]


def empty_row(cell_id: str, study: str, method: str, role: str, seed: int) -> Row:
    """A row in which nothing has been measured."""
    return {
        "schema": SCHEMA,
        "cell_id": cell_id,
        "study": study,
        "method": method,  # the study's key of the method, not the kind of adapter: that is method_config["method"]
        "label": method,
        "method_config": {},
        "role": role,
        "seed": seed,
        "status": "skipped",
        "error_type": None,
        "error_msg": None,
        "traceback_tail": None,
        "base": {},  # id, sha256, dtype, params_total
        "data": {},  # id, sha256, splits {train_tokens, valid_tokens, test_tokens}, order_sha256, seq_len,
        #              tokens_per_step, tokens_seen
        "train": {},  # lr, lr_grid, lr_at_grid_edge ("low" | "high" | null), steps, optimizer, schedule, seconds,
        #               curve [[step, train_loss | null, valid_loss | null, seconds], ...]
        "quality": {},  # valid_loss (at the best step), valid_loss_last, best_step, test_loss, test_ppl,
        #                 bits_per_byte, test_accuracy, bleu, bleu_signature, rouge1, rouge2, rougeL, bertscore_f1
        "cost": {},
        "convergence": {},
        "capacity": {},
        "null_reasons": {},
        "env": {},
        "created_at": None,
    }


def row_path(folder: Path, study: str, method: str, config_hash: str, name: str) -> Path:
    """Where the row called `name` ("seed0", "lr0.001", "cost") lies under the study's folder."""
    return folder / "rows" / study / method / config_hash / f"{name}.json"


def write_row(path: Path, row: Row) -> None:
    """Write atomically, on one line; figures that JSON lacks become null, with their reason."""
    write_text(path, json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_row(path: Path) -> Row | None:
    """The row; None if there is none. Raises CheckpointError for a file that is not a row of this schema."""
    if not path.exists():
        return None
    try:
        row = read_json(path)
        found = row["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it, and its cell runs again") from error
    if found != SCHEMA:
        raise CheckpointError(f"{path} has schema {found}, this qpeft reads {SCHEMA}; use the qpeft that wrote it")
    if missing := empty_row("", "", "", "", 0).keys() - row.keys():
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; delete it, and its cell runs again")
    return row


def read_rows(folder: Path) -> Iterator[Row]:
    """All rows below a study's folder, in the order of their paths."""
    for path in sorted((folder / "rows").rglob("*.json")):
        if (row := read_row(path)) is not None:
            yield row


def without_nan(row: Row) -> Row:
    """`row` with null for NaN and infinity, each named in `null_reasons`."""
    reasons = dict(row.get("null_reasons") or {})

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: clean(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, name) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            reasons.setdefault(name, "not a finite number")
            return None
        return value

    cleaned = clean({key: value for key, value in row.items() if key != "null_reasons"}, "")
    return {**cleaned, "null_reasons": reasons}
