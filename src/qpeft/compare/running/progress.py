"""What a comparison tells whoever shows it, and how much time its rest will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qpeft.compare.cells.cell import Cell
    from qpeft.compare.rows import Row


class CompareProgress(Protocol):
    """Receives a comparison's events in the runner's process; it should return quickly."""

    def on_plan(self, cells: Sequence[Cell], n_there: int, at_once: int) -> None:
        """What is to be run, `at_once` at a time; `n_there` further cells have their rows already."""

    def on_start(self, cell: Cell) -> None:
        """A cell begins, or goes on."""

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        """`done` of the cell's `total` steps are behind it."""

    def on_row(self, cell: Cell, row: Row) -> None:
        """A cell ended, well or not, and its row is written."""

    def on_note(self, text: str) -> None:
        """Something that whoever waits should know."""


class Silent:
    """Shows nothing."""

    def on_plan(self, cells: Sequence[Cell], n_there: int, at_once: int) -> None: ...

    def on_start(self, cell: Cell) -> None: ...

    def on_step(self, cell: Cell, done: int, total: int) -> None: ...

    def on_row(self, cell: Cell, row: Row) -> None: ...

    def on_note(self, text: str) -> None: ...


class Pace:
    """Seconds that cells take, learned from those that ended.

    A cell takes what its method took in the same phase; else what its method took in another; else the mean of all.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    def learn(self, cell: Cell, seconds: float) -> None:
        """`cell` took `seconds`."""
        self._seconds[phase_of(cell), cell.method].append(seconds)

    def of(self, cell: Cell) -> float | None:
        """What `cell` will take; None before anything is known."""
        same = self._seconds.get((phase_of(cell), cell.method))
        method = [s for (_, name), seconds in self._seconds.items() if name == cell.method for s in seconds]
        every = [s for seconds in self._seconds.values() for s in seconds]
        known = same or method or every
        return fmean(known) if known else None

    def left(self, cells: Iterable[Cell], at_once: int) -> float | None:
        """Seconds until `cells` are done, those that are timed one by one."""
        seconds = 0.0
        for cell in cells:
            if (one := self.of(cell)) is None:
                return None
            seconds += one if cell.role == "cost" else one / at_once
        return seconds


def phase_of(cell: Cell) -> str:
    """ "tuning", "final" or "cost"."""
    return cell.role if cell.role in ("tuning", "cost") else "final"
