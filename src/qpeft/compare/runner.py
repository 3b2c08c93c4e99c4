"""Run the cells of a study: trials of learning rates, then every seed, then time and memory.

Each cell runs in a process of its own and gets a row, also if it fails. A stopped or killed run resumes with the cells
that have no row, and an unfinished cell resumes from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.compare.cell import Cell, RunCell, Steps, lost_row, tidy
from qpeft.compare.local_executor import LocalExecutor
from qpeft.compare.progress import CompareProgress
from qpeft.compare.rows import ROWS, Row, RowFile, read_rows
from qpeft.errors import ConfigError, TrainingError
from qpeft.files import is_disk_full, remove_unfinished
from qpeft.training.interrupt import StopRequest
from qpeft.training.lock import locked

if TYPE_CHECKING:
    from qpeft.compare.analysis.types import Summary
    from qpeft.compare.plan import Plan
    from qpeft.compare.ray_executor import RayExecutor

EXECUTORS = ("local", "ray")
RETRIES = ("failed", "oom", "timeout")

_REFRESH_SECONDS = 30.0  # between two refreshes of the report while a study runs
_REFRESH_SHARE = 0.1  # of the time may be spent on refreshes


@dataclass(frozen=True)
class RunOutcome:
    """The result of a call of `run`."""

    n_done: int
    n_skipped: int  # cells that had rows already
    failures: list[Row]  # of all cells, those of earlier runs included
    summary: Summary


def run(
    plan: Plan,
    workers: int = 1,
    progress: CompareProgress | None = None,
    executor: str = "local",
    retry: Sequence[str] = (),
    timeout: float | None = None,
    reuse: Path | None = None,
    threads: int = 1,
    run_cell: RunCell | None = None,
) -> RunOutcome:
    """Run every cell of `plan` that has no row yet, then write the outputs.

    Args:
        workers: cells that run in parallel; cells that measure time always run alone.
        retry: statuses, of RETRIES, whose cells are run again.
        timeout: seconds after which a cell is killed.
        reuse: the folder of another study, whose rows of equal hash are copied instead of run.
        threads: CPU threads of a cell; a different number changes the last bits of its losses.
        run_cell: what runs a cell, importable by a child process; `cell_run.run_cell` in `threads` threads by default.

    Raises:
        ConfigError: an unknown executor or status, or another run in the same folder; nothing was done.
        TrainingError: the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, after the running cells saved the step in progress.
    """
    _check(executor, retry, workers, threads, timeout, reuse)
    progress = progress or CompareProgress()
    with locked(plan.folder), _clear_if_full(plan.folder):
        plan.claim()
        study = _Run(plan, progress, retry, reuse)
        study.tidy()
        run_cell = run_cell or partial(run_in_threads, threads)
        with _executor(executor, threads, plan.folder, run_cell, progress, workers, timeout) as pool:
            study.run(pool, workers)
        _remove_empty(plan.folder / "work")
        return study.outcome(write_outputs(plan.folder))


@contextmanager
def _clear_if_full(folder: Path) -> Iterator[None]:
    """Raise TrainingError for a full disk: the same command does not run the cells again that failed for it."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise TrainingError(
            f"the disk that holds {folder} is full; the rows of finished cells are intact. Free some space and run the "
            "command again with --retry failed"
        ) from error


class _Run:
    """One call of `run`."""

    def __init__(self, plan: Plan, progress: CompareProgress, retry: Sequence[str], reuse: Path | None):
        self._plan, self._progress, self._retry = plan, progress, retry
        self._file = RowFile(plan.folder)
        self._others = read_rows(reuse) if reuse is not None else {}
        self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        self._ended: set[str] = set()  # cells of this call

    def tidy(self) -> None:
        """Remove incomplete files, and the files of cells that have rows; a killed run leaves both."""
        remove_unfinished(self._plan.folder)
        for cell in self._cells():
            if (row := self._file.rows.get(cell.cell_id)) and row.succeeded:
                tidy(cell, self._plan.folder)

    def run(self, pool: LocalExecutor | RayExecutor, at_once: int) -> None:
        """Run the phases in order; the rows of the first determine the learning rates of the others."""
        left, n_rows = list[Cell](), -1
        while n_rows < len(self._file.rows):  # rows to reuse are copied, and determine further cells
            n_rows = len(self._file.rows)
            left = self._left(self._cells())
        self._progress.on_plan(left, len(self._cells()) - len(left), at_once)
        with StopRequest(pool.stop) as stop:
            for cells in self._rounds():
                self._run_round(cells, pool)
                if stop.wanted:
                    raise KeyboardInterrupt(self._how_to_resume())

    def outcome(self, summary: Summary) -> RunOutcome:
        """The outcome, after all phases."""
        cells, rows = self._cells(), self._file.rows
        failures = [row for cell in cells if (row := rows.get(cell.cell_id)) and is_failure(row)]
        return RunOutcome(len(self._ended), len(cells) - len(self._ended), failures, summary)

    def _cells(self) -> list[Cell]:
        plan, rows = self._plan, self._file.rows
        return [*plan.tuning_cells(rows), *plan.final_cells(rows), *plan.cost_cells(rows)]

    def _rounds(self) -> Iterator[list[Cell]]:
        """The cells that are left: trials of learning rates, which may make further trials necessary, seeds, costs."""
        plan, rows = self._plan, self._file.rows
        while trials := self._left(plan.tuning_cells(rows)):
            n_more = plan.most_tuning_cells(rows) - len(plan.tuning_cells(rows))
            self._progress.on_total(len(self._cells()), n_more)
            yield trials
        self._progress.on_total(len(self._cells()), 0)
        yield self._left(plan.final_cells(rows))
        yield self._left(plan.cost_cells(rows))

    def _run_round(self, left: list[Cell], pool: LocalExecutor | RayExecutor) -> None:
        for cell in (cell for cell in left if cell.impossible):
            self._keep(cell, lost_row(cell, "skipped", str(cell.impossible)))
        possible = [cell for cell in left if not cell.impossible]
        for cell, row in pool.run(possible, is_exclusive=any(cell.role == "cost" for cell in possible)):
            self._keep(cell, row)

    def _keep(self, cell: Cell, row: Row) -> None:
        self._file.append(row)
        if row.succeeded:
            tidy(cell, self._plan.folder)
        self._ended.add(cell.cell_id)
        self._progress.on_row(cell, row)
        if cell.role not in ("tuning", "cost"):
            self._refresh_outputs()

    def _refresh_outputs(self) -> None:
        """Write the outputs from time to time. A failure is reported, and the study continues."""
        began = time.monotonic()
        if began < self._next_refresh:
            return
        try:
            write_outputs(self._plan.folder)
        except Exception as error:
            self._progress.on_note(f"The report could not be refreshed: {error}")
        now = time.monotonic()
        self._next_refresh = now + max(_REFRESH_SECONDS, (now - began) / _REFRESH_SHARE)

    def _left(self, cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if not self._is_done(cell)]

    def _is_done(self, cell: Cell) -> bool:
        """Whether the cell has a row that is kept; a row of `reuse` is copied first."""
        if cell.cell_id in self._ended:  # failed cells are retried once
            return True
        row = self._file.rows.get(cell.cell_id) or self._adopt(cell)
        if row is None or row.status in self._retry or not cell.owns(row):
            return False
        return row.status != "skipped" or bool(cell.impossible)

    def _adopt(self, cell: Cell) -> Row | None:
        """The row of an equal cell, of this study or of the one to reuse; times are always measured again."""
        if cell.impossible or cell.role == "cost":
            return None
        for row in (*self._file.rows.values(), *self._others.values()):
            if row.succeeded and cell.owns(row):
                ours = {"cell_id": cell.cell_id, "study": cell.study, "method": cell.method, "role": cell.role}
                self._file.append(row.updated(**ours, label=cell.spec.label))
                return self._file.rows[cell.cell_id]
        return None

    def _how_to_resume(self) -> str:
        left = sum(cell.cell_id not in self._file.rows for cell in self._cells())
        return f"{left} cells are left. Run the same command again to resume."


def write_outputs(folder: Path) -> Summary:
    """Call `report.files.write_outputs`, imported late."""
    from qpeft.compare.report.files import write_outputs

    return write_outputs(folder)


def is_failure(row: Row) -> bool:
    """Whether the cell failed. A trial that diverged did not: its learning rate is too high."""
    return not row.succeeded and (row.role, row.status) != ("tuning", "diverged")


def run_in_threads(threads: int, cell: Cell, folder: Path, on_step: Steps) -> Row:
    """Run a cell with `threads` CPU threads, in its process."""
    import torch

    from qpeft.compare.cell_run import run_cell

    torch.set_num_threads(threads)
    return run_cell(cell, folder, on_step)


def _check(
    executor: str, retry: Sequence[str], workers: int, threads: int, timeout: float | None, reuse: Path | None
) -> None:
    if executor not in EXECUTORS:
        raise ConfigError(f"unknown executor {executor!r}; choose one of {', '.join(EXECUTORS)}")
    for status in retry:
        if status not in RETRIES:
            raise ConfigError(f"cannot retry {status!r}; choose from {', '.join(RETRIES)}")
    if workers < 1 or threads < 1:
        raise ConfigError(f"workers and threads must be at least 1, got {workers} and {threads}")
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"timeout must be more than 0 seconds, got {timeout:g}")
    if reuse is not None and not ((reuse / ROWS).is_file() or (reuse / "rows").is_dir()):
        raise ConfigError(f"{reuse} holds no rows to reuse; give the --out folder of another study")


def _executor(name: str, threads: int, *arguments: Any) -> LocalExecutor | RayExecutor:
    if name == "ray":
        from qpeft.compare.ray_executor import RayExecutor

        return RayExecutor(*arguments, threads=threads)
    return LocalExecutor(*arguments)


def _remove_empty(folder: Path) -> None:
    """Remove empty folders; the remaining files belong to failed cells."""
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        with suppress(OSError):
            path.rmdir()
