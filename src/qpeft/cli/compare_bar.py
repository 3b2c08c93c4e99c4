"""Progress of a comparison on standard error: a bar over all cells with the time left, and a line per finished cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from qpeft.cli.console import duration, say, stderr
from qpeft.compare.progress import Pace

if TYPE_CHECKING:
    from qpeft.compare.cell import Cell
    from qpeft.compare.rows import Row

_SHOWN_ERROR = 160  # characters of an error message; the row has all of it


class CompareBar:
    """Shows the running cells, the share of all cells done and the time left; without a terminal, lines only.

    Example:
        with CompareBar() as bar:
            run(plan, progress=bar)
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = stderr()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[cells]}  {task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("Starting", total=None, cells="", left="")
        self._pace = Pace()
        self._waiting: dict[str, Cell] = {}
        self._running: dict[str, float] = {}  # share of the cell that is done
        self._began: dict[str, float] = {}
        self._n_planned, self._at_once = 0, 1

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_plan(self, cells: Sequence[Cell], n_there: int, at_once: int) -> None:
        self._waiting = {cell.cell_id: cell for cell in cells}
        self._n_planned, self._at_once = len(cells), at_once
        if n_there:
            say("Note:", f"{n_there} of {n_there + len(cells)} cells are already done", "bold")
        self._draw()

    def on_start(self, cell: Cell) -> None:
        self._running[cell.cell_id] = 0.0
        self._began[cell.cell_id] = time.monotonic()
        self._draw()

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        self._running[cell.cell_id] = done / total
        self._draw()

    def on_row(self, cell: Cell, row: Row) -> None:
        self._waiting.pop(cell.cell_id, None)
        self._running.pop(cell.cell_id, None)
        seconds = ""
        if cell.cell_id in self._began:
            took = time.monotonic() - self._began.pop(cell.cell_id)
            self._pace.learn(cell, took)
            seconds = f", {duration(took)}"
        self._bar.console.print(f"{_name(cell)}: {_outcome(row)}{seconds}", soft_wrap=True)
        self._draw()

    def on_note(self, text: str) -> None:
        say("Note:", text, "bold")

    def _draw(self) -> None:
        names = ", ".join(_name(self._waiting[cell_id]) for cell_id in self._running if cell_id in self._waiting)
        n_done = self._n_planned - len(self._waiting)
        left = self._seconds_left()
        self._bar.update(
            self._task,
            description=names or "Starting",
            total=self._n_planned,
            completed=n_done + sum(self._running.values()),
            cells=f"cell {min(n_done + 1, self._n_planned)} of {self._n_planned}",
            left="" if left is None else f"{duration(left)} left",
        )

    def _seconds_left(self) -> float | None:
        whole = self._pace.left(self._waiting.values(), self._at_once)
        if whole is None:
            return None
        begun = ((self._pace.of(self._waiting[name]) or 0.0) * share for name, share in self._running.items())
        return max(0.0, whole - sum(begun) / self._at_once)


def _name(cell: Cell) -> str:
    return f"{cell.method} {cell.name}"


def _outcome(row: Row) -> str:
    if row.status != "success":
        message = " ".join((row.error_msg or "").split())
        return f"{row.status}: {message[:_SHOWN_ERROR]}".removesuffix(": ")
    quality = row.quality
    losses = {"test loss": quality.test_loss, "validation loss": quality.valid_loss}
    known = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
    return known[0] if known else "measured"
