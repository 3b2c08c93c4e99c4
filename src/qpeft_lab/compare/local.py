"""Cells on this machine, each in a process of its own, forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from qpeft.errors import TrainingError
from qpeft_lab.compare.cell import Cell, RunCell, failed_row, work_folder
from qpeft_lab.compare.rows import Row
from qpeft_lab.files import locked

FIRST_CELL = "QPEFT_COMPARE_FIRST_CELL"  # environment variable: the cell whose data `preload` reads, pickled
_PRELOAD = "qpeft_lab.compare.preload"
_PATIENCE = 30.0  # seconds that a cell waits for the process of a killed run to end


@dataclass
class LocalExecutor(AbstractContextManager):
    """Runs cells of the study in `folder`, `workers` at once.

    A cell that crashes or is killed gets a row with the reason. The others continue.
    """

    folder: Path
    run_cell: RunCell
    workers: int = 1
    threads: int = 1  # of a cell
    is_stopping: bool = False
    _running: dict[Connection, tuple[Cell, BaseProcess]] = field(default_factory=dict)

    def __exit__(self, *_: object) -> None: ...

    def run(self, cells: Sequence[Cell], is_exclusive: bool = False) -> Iterator[tuple[Cell, Row]]:
        """Yield each cell with its row when it ends; `is_exclusive`: one by one."""
        waiting = deque(cells)
        workers = 1 if is_exclusive else self.workers
        try:
            while (waiting and not self.is_stopping) or self._running:
                while waiting and not self.is_stopping and len(self._running) < workers:
                    yield from self._start(waiting.popleft())
                yield from self._ended()
        finally:
            for _, process in self._running.values():
                process.kill()
            self._running.clear()

    def stop(self) -> None:
        """Let the running cells save the step in progress and end, and then `run`. A signal handler may call it."""
        self.is_stopping = True
        for pipe in list(self._running):
            with suppress(OSError):  # it has just ended
                pipe.send(None)

    def _start(self, cell: Cell) -> Iterator[tuple[Cell, Row]]:
        """Start the cell's process. Yield the cell with its row if the process is killed before it runs."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", _PRELOAD])
        os.environ[FIRST_CELL] = pickle.dumps(cell).hex()
        ours, theirs = context.Pipe()
        arguments = (cell, self.folder, self.run_cell, self.threads, theirs, _PATIENCE)
        process = context.Process(target=_run_here, args=arguments, daemon=True)
        try:
            process.start()
            self._running[ours] = cell, process
        except (ConnectionError, EOFError):  # it, or the process that forks it, no longer reads
            if not self.is_stopping:
                yield cell, failed_row(cell, TrainingError("the process was killed while it started"))
        finally:
            theirs.close()  # so that the pipe ends with the process

    def _ended(self) -> Iterator[tuple[Cell, Row]]:
        """Wait until a cell ends, and yield those that have ended, with their rows."""
        ready = wait(self._running) if self._running else []
        for pipe in [pipe for pipe in self._running if pipe in ready]:
            cell, process = self._running[pipe]
            try:
                row = pipe.recv()
            except (EOFError, OSError):  # it was interrupted or killed
                row = None
            process.join(_PATIENCE)  # it releases its semaphores
            process.kill()
            pipe.close()
            del self._running[pipe]
            if row is None and not self.is_stopping:
                hint = ", perhaps for lack of memory" if process.exitcode == -signal.SIGKILL else ""
                ended = f"the process ended with exit code {process.exitcode} and without a result{hint}"
                row = failed_row(cell, TrainingError(f"{ended}; its output is in {log_path(self.folder, cell)}"))
            if row is not None:
                yield cell, row


def log_path(folder: Path, cell: Cell) -> Path:
    """The file of a cell's output."""
    return work_folder(cell, folder) / "output.log"


def _run_here(cell: Cell, folder: Path, run_cell: RunCell, threads: int, pipe: Connection, patience: float) -> None:
    """Run the cell in its own process, and send its row unless it is interrupted."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C is for the runner, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
    _write_output_to(log_path(folder, cell))
    torch.set_num_threads(threads)
    try:
        with locked(work_folder(cell, folder), patience):
            row = run_cell(cell, folder)
    except KeyboardInterrupt:
        return
    except BaseException as error:
        row = failed_row(cell, error)
    pipe.send(row)


def _obey(pipe: Connection) -> None:
    """Interrupt the cell when the runner sends a message. If the runner has ended, end the process."""
    with suppress(OSError):
        while True:
            try:
                pipe.recv()
            except EOFError:
                os._exit(1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _write_output_to(log: Path) -> None:
    """Redirect the output of libraries, which would disturb the runner's progress bar."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
