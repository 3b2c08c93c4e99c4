"""Progress of training runs and of comparisons on standard error: bars of rich on a terminal, and a line per event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpeft_lab.cli.console import line, say, stderr
from qpeft_lab.compare.progress import CompareProgress
from qpeft_lab.compare.rows import cell_id
from qpeft_lab.training.progress import Progress

if TYPE_CHECKING:
    from rich import progress

    from qpeft_lab.compare.cell import Cell
    from qpeft_lab.compare.rows import Row
    from qpeft_lab.training.score import Score


def bars() -> progress.Progress:
    """Bars with the time left, for the two classes below; nothing without a terminal."""
    from rich import progress

    columns = (*progress.Progress.get_default_columns(), "{task.fields[text]}")
    return progress.Progress(*columns, console=stderr(), disable=not stderr().is_terminal, transient=True)


class TrainingBar(Progress):
    """Shows the steps of the run `name` as one of `shown`, and prints its scores."""

    def __init__(self, shown: progress.Progress, name: str) -> None:
        self._bars, self._name = shown, name
        self._task = shown.add_task(name, total=None, text="")

    def on_stage(self, what: str) -> None:
        self._bars.update(self._task, text=what)

    def on_note(self, line: str) -> None:
        self._print(f": {line}")

    def on_start(self, total: int, done: int) -> None:
        self._bars.update(self._task, total=total, completed=done)
        if done:
            self._print(f": resuming from step {done}")

    def on_step(self, step: int, loss: float) -> None:
        self._bars.update(self._task, completed=step, text=f"loss {loss:.3f}")

    def on_eval(self, step: int, score: Score) -> None:
        self._print(f", step {step}: {' '.join(score.headline)}")

    def _print(self, text: str) -> None:
        line(stderr(), f"{self._name}{text}")


class CompareBar(CompareProgress):
    """Shows the cells done and those that run as some of `shown`, and prints a line per finished cell."""

    def __init__(self, shown: progress.Progress) -> None:
        self._bars, self._n_done, self._total = shown, 0, 0
        self._all = shown.add_task("cells", total=None, text="")
        self._running: dict[str, progress.TaskID] = {}

    def on_total(self, n_cells: int, n_finished: int) -> None:
        if n_finished > self._n_done:
            say("Note:", f"{n_finished} of {n_cells} cells are already done")
        self._n_done, self._total = n_finished, n_cells
        self._bars.update(self._all, total=n_cells, completed=n_finished)

    def on_start(self, cell: Cell) -> None:
        self._running[_name(cell)] = self._bars.add_task(_name(cell), text="")

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        self._bars.update(self._running[_name(cell)], completed=done, total=total)

    def on_row(self, cell: Cell, row: Row) -> None:
        self._n_done += 1
        self._bars.update(self._all, completed=self._n_done)
        if (task := self._running.pop(_name(cell), None)) is not None:
            self._bars.remove_task(task)
        line(stderr(), f"{self._n_done} of {self._total}: {_name(cell)}: {_outcome(row)}")

    def on_note(self, text: str) -> None:
        say("Note:", text)


def say_failures(failures: Iterable[Row]) -> None:
    """A line for each cell that failed."""
    for row in failures:
        say(f"{row['status']}:", " ".join(f"{cell_id(row)}: {row.get('error') or ''}".split()), "bold red")


def _name(cell: Cell) -> str:
    return f"{cell.method} {cell.name}"


def _outcome(row: Row) -> str:
    if row["status"] != "success":
        return " ".join(f"{row['status']}: {row.get('error') or ''}".split())
    losses = {"test loss": row.get("test_loss"), "validation loss": row.get("valid_loss")}
    known = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
    worse = ", did not improve on the base" if row.get("lr") is not None and row.get("best_step") == 0 else ""
    return f"{known[0]}{worse}" if known else "measured"
