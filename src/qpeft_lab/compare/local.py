"""Cells on this machine, each in a process of its own, forked from a process that has imported
everything.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pebble import ProcessExpired, ProcessFuture, concurrent

from qpeft.errors import TrainingError
from qpeft_lab.compare.cell import Cell, RunCell, data_as_json, failed_row, work_folder
from qpeft_lab.compare.cell_progress import Reached, read_progress
from qpeft_lab.compare.rows import Row
from qpeft_lab.files import locked

DATA = "QPEFT_COMPARE_DATA"  # environment variable: the data that `preload` reads, as JSON
_PRELOAD = "qpeft_lab.compare.preload"
_SECONDS_BETWEEN_REPORTS = 1.0
_PATIENCE = 30.0  # seconds that a cell waits for the process of a killed run to end
_FORKSERVER = multiprocessing.get_context("forkserver")
_process: Any = concurrent.process  # its annotations have another name for `context`


@dataclass
class LocalExecutor(AbstractContextManager):
    """Runs cells of the study in `folder`, `workers` at once.

    A cell that crashes or is killed gets a row with the reason. The others continue.
    """

    folder: Path
    run_cell: RunCell
    workers: int = 1
    threads: int = 1  # of a cell
    on_cell: Callable[[Cell, Reached], None] = lambda cell, reached: None
    is_stopping: bool = False
    _stop: tuple[Connection, Connection] = field(
        default_factory=lambda: multiprocessing.Pipe(duplex=False)
    )

    def __exit__(self, *_: object) -> None: ...

    def run(self, cells: Sequence[Cell], is_exclusive: bool = False) -> Iterator[tuple[Cell, Row]]:
        """Yield each cell with its row when it ends; `is_exclusive`: one by one."""
        waiting = deque(cells)
        running: dict[Future[Row], Cell] = {}
        workers = 1 if is_exclusive else self.workers
        try:
            while (waiting and not self.is_stopping) or running:
                while waiting and not self.is_stopping and len(running) < workers:
                    cell = waiting.popleft()
                    running[self._start(cell)] = cell
                ended = wait(running, _SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED).done
                self._report(running.values())
                for future in ended:
                    cell = running.pop(future)
                    if (row := self._row(cell, future)) is not None:
                        yield cell, row
        finally:
            for future in running:
                future.cancel()  # which ends its process

    def stop(self) -> None:
        """Let the running cells save the step in progress and end, and then `run`. A signal handler
        may call it.
        """
        self.is_stopping = True
        self._stop[1].send(None)

    def _report(self, running: Iterable[Cell]) -> None:
        """Pass on what the cells have written about their progress."""
        for cell in running:
            reached = read_progress(work_folder(cell, self.folder))
            if reached is not None:
                self.on_cell(cell, reached)

    def _start(self, cell: Cell) -> Future[Row]:
        """Start the cell's process."""
        _FORKSERVER.set_forkserver_preload(["__main__", _PRELOAD])
        os.environ[DATA] = data_as_json(cell)
        try:
            return _run_here(
                cell, self.folder, self.run_cell, self.threads, self._stop[0], _PATIENCE
            )
        except (ConnectionError, EOFError):  # it, or the process that forks it, no longer reads
            future = ProcessFuture()
            future.set_exception(TrainingError("the process was killed while it started"))
            return future

    def _row(self, cell: Cell, future: Future[Row]) -> Row | None:
        """The row of a cell whose process has ended; None if it was interrupted."""
        error = future.exception()
        if error is None:
            return future.result()
        if self.is_stopping:
            return None
        if isinstance(error, ProcessExpired):
            # 255: multiprocessing could not read the code, because another process started at that
            # moment
            hint = (
                ", perhaps for lack of memory" if error.exitcode in (-signal.SIGKILL, 255) else ""
            )
            ended = f"the process ended with exit code {error.exitcode} and without a result{hint}"
            error = TrainingError(f"{ended}; its output is in {log_path(self.folder, cell)}")
        return failed_row(cell, error)


def log_path(folder: Path, cell: Cell) -> Path:
    """The file of a cell's output."""
    return work_folder(cell, folder) / "output.log"


@_process(context=_FORKSERVER)
def _run_here(
    cell: Cell, folder: Path, run_cell: RunCell, threads: int, stop: Connection, patience: float
) -> Row:
    """Run the cell in its own process. Raises KeyboardInterrupt if it is interrupted."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C is for the runner, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_obey, args=(stop,), daemon=True).start()
    (log := log_path(folder, cell)).parent.mkdir(parents=True, exist_ok=True)
    # for the output of libraries, which would disturb the runner's progress bar
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    try:
        with locked(work_folder(cell, folder), patience):
            return run_cell(cell, folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # not all can be pickled
        return failed_row(cell, error)
    finally:
        # pebble terminates a process that has sent its result; it shall end by itself, and release
        # its semaphores
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _obey(stop: Connection) -> None:
    """Interrupt the cell when the runner stops. If the runner has ended, end the process."""
    stop.poll(None)  # the message is left to the other cells
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    if (runner := multiprocessing.parent_process()) is not None:
        runner.join()
    os._exit(1)
