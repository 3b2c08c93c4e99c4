"""One training of a comparison and all that is measured of it, in a process of its own: from a Cell to its row."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qpeft.compare.rows import Row, empty_row
from qpeft.compare.study import UNTRAINED
from qpeft.errors import TrainingError
from qpeft.files import remove_folder

Steps = Callable[[int, int], None]  # done, planned

_PACKAGES = ("qpeft", "torch", "transformers", "peft")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Cell:
    """A method with a seed and a rate; plain data that any process on any machine with the study's folder can run."""

    study: str
    method: str  # the study's key
    role: str
    name: str  # of its row: seed0, lr0.001, cost
    seed: int
    hash: str  # of the method's config with its rates, the base, the data and the training
    weight: float  # cheap ones go first
    config: dict[str, Any]  # label, method, host, settings, rates
    lr: float | None
    lr_at_edge: str | None
    recipe: dict[str, Any]  # what all cells of the study share
    impossible: str | None = None  # why it cannot run

    @property
    def cell_id(self) -> str:
        return f"{self.study}/{self.method}/{self.hash}/{self.name}"

    @property
    def steps(self) -> int:
        """Optimiser steps that it takes."""
        return 0 if self.config["method"] == UNTRAINED or self.role == "cost" else self.recipe["training"]["steps"]


def run_cell(cell: Cell, folder: Path, on_step: Steps = lambda done, planned: None) -> Row:
    """Train, or go on with what an earlier process left under `folder`/work, measure, and return the row.

    A training whose loss stopped being finite, or ended above twice its first value, is a row of status diverged.
    Whatever else goes wrong is raised. The files under work/ are removed when the row is complete: call `tidy`.
    """
    if cell.impossible:
        raise TrainingError(cell.impossible)
    from qpeft.compare.cells import measuring

    if cell.role == "cost":
        return measuring.cost_row(cell, folder)
    try:
        return measuring.quality_row(cell, folder, on_step)
    except TrainingError as error:
        if "is nan at step" not in str(error) and "is inf at step" not in str(error):
            raise
        return measuring.diverged_row(cell, folder, error)


def work_folder(cell: Cell, folder: Path) -> Path:
    """Where an unfinished cell keeps its run."""
    rate = "" if cell.lr is None else f"-lr{cell.lr:g}"  # another rate, chosen later, must not go on with this run
    return folder / "work" / cell.method / cell.hash / f"{cell.name}{rate}"


def tidy(cell: Cell, folder: Path) -> None:
    """Remove an unfinished cell's files, once its row is on the disk."""
    if (work := work_folder(cell, folder)).is_dir():
        remove_folder(work)


def started_row(cell: Cell) -> Row:
    """A row with everything that is known before the cell runs."""
    row = empty_row(cell.cell_id, cell.study, cell.method, cell.role, cell.seed)
    recipe = cell.recipe
    row["label"] = cell.config["label"]
    row["method_config"] = {key: cell.config[key] for key in ("method", "host", "settings")} | {"hash": cell.hash}
    if cell.config.get("backend"):
        row["method_config"]["backend"] = cell.config["backend"]
    row["base"] = {key: recipe["base"][key] for key in ("id", "sha256", "dtype", "params_total")}
    row["data"] = {key: recipe["data"][key] for key in ("id", "sha256")}
    row["train"] = {
        "lr": cell.lr,
        "lr_grid": cell.config["rates"],
        "lr_at_grid_edge": cell.lr_at_edge,
        "optimizer": "AdamW, betas 0.9 and 0.999",
        "schedule": f"linear decay after {recipe['training']['warmup']:.0%} warm-up",
        **{key: recipe["training"][key] for key in ("steps", "batch_size", "seq_len", "weight_decay", "max_grad_norm")},
    }
    row["env"] = environment()
    row["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    return row


def failed_row(cell: Cell, error: BaseException) -> Row:
    """The row of a cell that raised: status oom where memory was short, else failed."""
    is_oom = isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
    tail = "".join(traceback.format_exception(error))[-2000:]
    return {
        **lost_row(cell, "oom" if is_oom else "failed", str(error) or type(error).__name__),
        "error_type": type(error).__name__,
        "traceback_tail": tail,
    }


def lost_row(cell: Cell, status: str, message: str) -> Row:
    """The row of a cell whose process is gone."""
    return {**started_row(cell), "status": status, "error_msg": message}


@cache
def environment() -> dict[str, Any]:
    """Versions and hardware, as they stand in a row."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "device_count": torch.cuda.device_count() if on_gpu else 1,
        "threads": torch.get_num_threads(),
        "os": platform.system(),
    }


def _cpu_name() -> str:
    with suppress(OSError):  # Linux alone tells
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"cpu {platform.machine()}"
