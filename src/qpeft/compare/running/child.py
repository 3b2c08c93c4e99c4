"""What a cell's own process does: train, measure, hand the row to the runner, and die with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.compare.rows import Row
from qpeft.compare.running.locks import cell_at_work

if TYPE_CHECKING:
    from qpeft.compare.cells.cell import Cell

STARTED, STEP, ROW = "started", "step", "row"  # the messages: (STARTED,), (STEP, done, total), (ROW, row)
RunCell = Callable[["Cell", Path, Callable[[int, int], None]], Row]

_INTERRUPTED = 130
_SECONDS_BETWEEN_STEPS = 0.2


def main(cell: Cell, folder: Path, run_cell: RunCell, log: Path, answers: Connection) -> None:
    """Run `cell` and send its row; of what it raises a row is made. Interrupted, it ends with 130, without a row."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C is for the runner, which passes it on
    threading.Thread(target=_die_with_runner, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _write_output_to(log)
        answers.send((STARTED,))
        with cell_at_work(folder):
            answers.send((ROW, _row(cell, folder, run_cell, _Steps(answers))))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def run_in_threads(threads: int, cell: Cell, folder: Path, on_step: Callable[[int, int], None]) -> Row:
    """`cell.run_cell` with that many threads of torch."""
    import torch

    from qpeft.compare.cells.cell import run_cell

    torch.set_num_threads(threads)
    return run_cell(cell, folder, on_step)


def _row(cell: Cell, folder: Path, run_cell: RunCell, on_step: Callable[[int, int], None]) -> Row:
    try:
        return run_cell(cell, folder, on_step)
    except Exception as error:
        from qpeft.compare.cells.cell import failed_row

        traceback.print_exc()
        return failed_row(cell, error)


def _die_with_runner() -> None:
    """After `kill -9` of the runner nobody would wait for this cell, and the next run must not find it writing."""
    runner = multiprocessing.parent_process()
    if runner is not None:
        runner.join()
        os._exit(1)


def _write_output_to(log: Path) -> None:
    """What libraries print would tear the runner's progress."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


class _Steps:
    """Sends the number of steps done, a few times a second at most."""

    def __init__(self, answers: Connection):
        self._answers = answers
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._answers.send((STEP, done, total))
            self._next = now + _SECONDS_BETWEEN_STEPS
