"""A cell, one method with one seed and one learning rate; its row before it runs, and after a failure."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qpeft.compare.rate_search import Edge
from qpeft.compare.resolved import ResolvedMethod
from qpeft.compare.rows import Base, Data, Environment, MethodConfig, Row, Train, cell_id
from qpeft.compare.study import Generation, MethodSpec, Training
from qpeft.errors import QpeftError
from qpeft.files import remove_folder

Steps = Callable[[int, int], None]  # receives (steps done, steps planned)
RunCell = Callable[["Cell", Path, Steps], Row]

FIRST_CELL = "QPEFT_COMPARE_FIRST_CELL"  # environment variable: the cell whose data `preload` reads

_PACKAGES = ("qpeft", "torch", "transformers", "peft")
_RETRY = "run the command again with --retry failed"  # a failed cell is not run again otherwise
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SplitData(_Frozen):
    """The files of the split data, and the hash over their content."""

    id: str
    sha256: str
    train: Path
    validation: Path
    test: Path
    general: Path | None = None  # a text for the measurement of forgetting
    notes: list[str] = []  # for readers of the report


class Setup(_Frozen):
    """What all cells of a study share."""

    model: str  # path of the base model
    base: Base
    data: SplitData
    task: str
    training: Training
    test_blocks: int = 0
    generation: Generation | None = None
    capacity: bool = True
    first_seed: int = 0
    trust_remote_code: bool = False
    reference: MethodSpec | None = None  # the method that times are compared with


class Cell(_Frozen):
    """A method with a seed and a learning rate: everything that a process needs to run it in the study's folder."""

    study: str
    spec: ResolvedMethod
    role: str
    name: str  # of the row: seed0, lr0.001, cost
    seed: int
    lr: float | None
    lr_grid: list[float] = []  # all learning rates that are tried, as far as rows determined them
    lr_at_edge: Edge | None = None
    setup: Setup
    impossible: str | None = None  # why it cannot run

    @property
    def method(self) -> str:
        """The study's key of the method."""
        return self.spec.key

    @property
    def hash(self) -> str:
        """Hash of the method's config with its learning rates, the base, the data and the training."""
        return self.spec.hash

    @property
    def cell_id(self) -> str:
        return cell_id(self.study, self.method, self.hash, self.name)

    def owns(self, row: Row) -> bool:
        """Whether `row` is of this method, learning rate, seed or trial, base, tokenizer and data."""
        is_ours = (row.name, row.seed, row.train.lr) == (self.name, self.seed, self.lr)
        return is_ours and self.spec.owns(row, self.setup.base, self.setup.data.sha256)

    @property
    def steps(self) -> int:
        """Optimizer steps of the cell."""
        return self.setup.training.steps if self.spec.is_trained and self.role != "cost" else 0


def work_folder(cell: Cell, folder: Path) -> Path:
    """The folder of the cell's run, until the cell has its row."""
    rate = "" if cell.lr is None else f"-lr{cell.lr:g}"  # a cell with another learning rate must not resume this run
    return folder / "work" / cell.method / cell.hash / f"{cell.name}{rate}"


def tidy(cell: Cell, folder: Path) -> None:
    """Remove the files of the cell's run, once its row is on the disk."""
    if (work := work_folder(cell, folder)).is_dir():
        remove_folder(work)


def started_row(cell: Cell) -> Row:
    """The row of a cell before it runs."""
    setup, spec = cell.setup, cell.spec
    training = setup.training
    optional = {name: value for name in ("kind", "backend") if (value := getattr(spec, name))}
    return Row(
        cell_id=cell.cell_id,
        study=cell.study,
        method=cell.method,
        label=spec.label,
        method_config=MethodConfig(
            method=spec.method, host=spec.host, settings=spec.settings, hash=cell.hash, **optional
        ),
        role=cell.role,
        seed=cell.seed,
        base=setup.base,
        data=Data(id=setup.data.id, sha256=setup.data.sha256),
        train=Train(
            lr=cell.lr,
            lr_grid=cell.lr_grid,
            lr_at_grid_edge=cell.lr_at_edge,
            optimizer="AdamW, betas 0.9 and 0.999",
            schedule=training.schedule,
            steps=training.steps,
            batch_size=training.batch_size,
            seq_len=training.seq_len,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
        ),
        env=environment(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def failed_row(cell: Cell, error: BaseException) -> Row:
    """The row of a cell that raised: status oom for lack of memory, otherwise failed."""
    is_oom = isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
    tail = "".join(traceback.format_exception(error))[-2000:]
    message = error.message(again=_RETRY) if isinstance(error, QpeftError) else str(error)
    lost = lost_row(cell, "oom" if is_oom else "failed", message or type(error).__name__)
    return lost.updated(error_type=type(error).__name__, traceback_tail=tail)


def lost_row(cell: Cell, status: str, message: str) -> Row:
    """The row of a cell that did not return one."""
    return started_row(cell).updated(status=status, error_msg=message)


@cache
def environment() -> Environment:
    """Versions of packages, and the hardware of this process."""
    import torch

    on_gpu = torch.cuda.is_available()
    return Environment(
        python=platform.python_version(),
        **{package: version(package) for package in _PACKAGES},  # type: ignore[arg-type]
        device=torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        device_count=torch.cuda.device_count() if on_gpu else 1,
        threads=torch.get_num_threads(),
        os=platform.system(),
    )


def _cpu_name() -> str:
    with suppress(OSError):  # only Linux has it
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"cpu {platform.machine()}"
