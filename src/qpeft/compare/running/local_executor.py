"""Cells on this machine, each in a process of its own, forked from one that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qpeft.compare.rows import Row
from qpeft.compare.running import child
from qpeft.compare.running.child import RunCell
from qpeft.compare.running.locks import alone_on_machine
from qpeft.compare.running.progress import CompareProgress

if TYPE_CHECKING:
    from qpeft.compare.cells.cell import Cell

_PRELOAD = "qpeft.compare.running.preload"
FIRST_CELL = "QPEFT_COMPARE_FIRST_CELL"  # the environment variable by which `preload` knows the study's data

_SECONDS_TO_END = 10.0  # for a process that has sent its row


@dataclass
class _Child:
    cell: Cell
    process: Any
    answers: Connection
    ends_at: float  # on the monotonic clock
    is_ready: bool = False  # to be interrupted: before, a signal would be lost

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.answers.close()


class LocalExecutor:
    """Runs cells of the study in `folder`, `workers` at once.

    A cell that crashes, is killed or takes more than `timeout` seconds gets a row that says so, and harms no other.
    """

    def __init__(
        self,
        folder: Path,
        run_cell: RunCell,
        progress: CompareProgress,
        workers: int = 1,
        timeout: float | None = None,
    ):
        self._folder, self._run_cell, self._progress = folder, run_cell, progress
        self._workers, self._timeout = workers, timeout
        self._running: list[_Child] = []
        self._is_stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives `run`."""

    def run(self, cells: Sequence[Cell], is_exclusive: bool = False) -> Iterator[tuple[Cell, Row]]:
        """Each cell with its row as they end; `is_exclusive`: one at a time, while no other study here times any."""
        waiting = deque(cells)
        workers = 1 if is_exclusive else self._workers
        alone = alone_on_machine(self._progress.on_note, lambda: self._is_stopping) if cells and is_exclusive else None
        try:
            with alone or nullcontext():
                while (waiting and not self._is_stopping) or self._running:
                    while waiting and not self._is_stopping and len(self._running) < workers:
                        self._start(waiting.popleft())
                    yield from self._ended()
        finally:
            for running in self._running:
                running.kill()
            self._running.clear()

    def stop(self) -> None:
        """Let the running cells finish the step in progress, and save; `run` then ends. May be called by a signal."""
        self._is_stopping = True
        for running in self._running:
            with suppress(ProcessLookupError):
                os.kill(running.process.pid, signal.SIGINT if running.is_ready else signal.SIGKILL)

    def _start(self, cell: Cell) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", _PRELOAD])
        os.environ[FIRST_CELL] = cell.model_dump_json()
        ours, theirs = context.Pipe(duplex=False)
        arguments = (cell, self._folder, self._run_cell, log_path(self._folder, cell), theirs)
        process = context.Process(target=child.main, args=arguments, name=cell.cell_id)
        self._progress.on_start(cell)
        process.start()
        theirs.close()  # else the end of the process would not end the pipe
        ends_at = time.monotonic() + (self._timeout or float("inf"))
        self._running.append(_Child(cell, process, ours, ends_at))

    def _ended(self) -> Iterator[tuple[Cell, Row]]:
        """Wait for the next messages or the next timeout; the cells that have ended by then."""
        left = min(running.ends_at for running in self._running) - time.monotonic()
        ready = wait([running.answers for running in self._running], None if left == float("inf") else max(0.0, left))
        for running in list(self._running):
            if running.answers in ready:
                yield from self._receive(running)
            elif time.monotonic() >= running.ends_at:
                self._forget(running)
                yield running.cell, self._lost(running.cell, "timeout", f"it took more than {self._timeout:g} s")

    def _receive(self, running: _Child) -> Iterator[tuple[Cell, Row]]:
        try:
            kind, *content = running.answers.recv()
        except (EOFError, ConnectionResetError):
            running.process.join()
            self._running.remove(running)
            running.answers.close()
            if not self._is_stopping:
                yield running.cell, self._lost(running.cell, "failed", _how_it_ended(running.process.exitcode))
            return
        if kind == child.STARTED:
            running.is_ready = True
        elif kind == child.STEP:
            self._progress.on_step(running.cell, *content)
        elif kind == child.ROW:
            running.process.join(_SECONDS_TO_END)
            self._forget(running)
            if content[0].succeeded:
                log_path(self._folder, running.cell).unlink(missing_ok=True)
            yield running.cell, content[0]

    def _forget(self, running: _Child) -> None:
        self._running.remove(running)
        running.kill()

    def _lost(self, cell: Cell, status: str, message: str) -> Row:
        from qpeft.compare.cells.cell import lost_row

        return lost_row(cell, status, f"{message}; what it printed is in {log_path(self._folder, cell)}")


def log_path(folder: Path, cell: Cell) -> Path:
    """Where a cell's process prints to; the file stays if the cell fails."""
    return folder / "work" / cell.method / cell.hash / f"{cell.name}.log"


def _how_it_ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"the process ended with exit code {exit_code} and without a result"
    hint = ", perhaps for want of memory" if -exit_code == signal.SIGKILL else ""
    return f"the process was killed by signal {-exit_code}{hint}"
