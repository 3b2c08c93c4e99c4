"""Progress and failures of a comparison on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from qpeft.cli.console import duration, say, stderr
from qpeft.compare.progress import CompareProgress

if TYPE_CHECKING:
    from qpeft.compare.cell import Cell
    from qpeft.compare.rows import Row

_SHOWN_ERROR = 160  # characters of an error message; the row has all of it
_WINDOW = 600.0  # seconds: the speed is that of the last ten minutes


class CompareBar(CompareProgress):
    """Shows the running cells, the share of all cells done and the time left, and a line per finished cell.

    Without a terminal there are lines only.

    Example:
        with CompareBar() as bar:
            run(plan, progress=bar)
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = stderr()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[cells]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=_WINDOW,
        )
        self._task = self._bar.add_task("Starting", total=None, cells="")
        self._running: dict[str, float] = {}  # by name: share of the cell that is done
        self._began: dict[str, float] = {}
        self._n_cells = self._n_more = self._n_done = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_plan(self, cells: Sequence[Cell], n_finished: int, at_once: int) -> None:
        self._n_cells, self._n_done = n_finished + len(cells), n_finished
        if n_finished:
            say("Note:", f"{n_finished} of {self._n_cells} cells are already done", "bold")
        self._draw()

    def on_total(self, n_cells: int, n_more: int) -> None:
        self._n_cells, self._n_more = n_cells, n_more
        self._draw()

    def on_start(self, cell: Cell) -> None:
        self._running[_name(cell)] = 0.0
        self._began[_name(cell)] = time.monotonic()
        self._draw()

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        self._running[_name(cell)] = done / total
        self._draw()

    def on_row(self, cell: Cell, row: Row) -> None:
        name = _name(cell)
        self._n_done += 1
        self._running.pop(name, None)
        took = f", {duration(time.monotonic() - self._began.pop(name))}" if name in self._began else ""
        self._bar.console.print(f"{self._done()}: {name}: {_outcome(row)}{took}", soft_wrap=True)
        self._draw()

    def on_note(self, text: str) -> None:
        say("Note:", text, "bold")

    def _done(self) -> str:
        return f"{self._n_done} of {'up to ' * bool(self._n_more)}{self._n_cells + self._n_more}"

    def _draw(self) -> None:
        self._bar.update(
            self._task,
            description=", ".join(self._running) or "Starting",
            total=self._n_cells + self._n_more,
            completed=self._n_done + sum(self._running.values()),
            cells=f"{self._done()} cells",
        )


def say_failures(failures: Iterable[Row]) -> None:
    """A line for each cell that failed."""
    for row in failures:
        say(f"{row.status}:", " ".join(f"{row.cell_id}: {row.error_msg or ''}".split()), "bold red")


def _name(cell: Cell) -> str:
    return f"{cell.method} {cell.name}"


def _outcome(row: Row) -> str:
    if row.status != "success":
        message = " ".join((row.error_msg or "").split())
        return f"{row.status}: {message[:_SHOWN_ERROR]}".removesuffix(": ")
    losses = {"test loss": row.quality.test_loss, "validation loss": row.quality.valid_loss}
    known = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
    worse = ", did not improve on the base" if row.train.lr is not None and row.quality.best_step == 0 else ""
    return f"{known[0]}{worse}" if known else "measured"
