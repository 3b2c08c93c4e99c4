"""Events of a running study, and an estimate of the time left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qpeft.compare.cell import Cell
    from qpeft.compare.rows import Row


class CompareProgress(Protocol):
    """Receives a comparison's events in the runner's process; it should return quickly."""

    def on_plan(self, cells: Sequence[Cell], n_there: int, at_once: int) -> None:
        """`cells` will run, `at_once` at a time; `n_there` further cells have their rows already."""

    def on_start(self, cell: Cell) -> None:
        """A cell starts or resumes."""

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        """`done` of the cell's `total` steps are done."""

    def on_row(self, cell: Cell, row: Row) -> None:
        """A cell ended or failed, and its row is written."""

    def on_note(self, text: str) -> None:
        """A note for the user."""


class Silent:
    """Ignores every event."""

    def on_plan(self, cells: Sequence[Cell], n_there: int, at_once: int) -> None: ...

    def on_start(self, cell: Cell) -> None: ...

    def on_step(self, cell: Cell, done: int, total: int) -> None: ...

    def on_row(self, cell: Cell, row: Row) -> None: ...

    def on_note(self, text: str) -> None: ...


class Pace:
    """Estimates the seconds that cells take from those that ended.

    The estimate is the mean over cells of the same method and phase; else over cells of the method; else over all.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    def learn(self, cell: Cell, seconds: float) -> None:
        """`cell` took `seconds`."""
        self._seconds[phase_of(cell), cell.method].append(seconds)

    def of(self, cell: Cell) -> float | None:
        """Estimated seconds of `cell`; None before any cell ended."""
        same = self._seconds.get((phase_of(cell), cell.method))
        method = [s for (_, name), seconds in self._seconds.items() if name == cell.method for s in seconds]
        every = [s for seconds in self._seconds.values() for s in seconds]
        known = same or method or every
        return fmean(known) if known else None

    def left(self, cells: Iterable[Cell], at_once: int) -> float | None:
        """Estimated seconds until `cells` are done; cells that measure time run one by one."""
        seconds = 0.0
        for cell in cells:
            if (one := self.of(cell)) is None:
                return None
            seconds += one if cell.role == "cost" else one / at_once
        return seconds


def phase_of(cell: Cell) -> str:
    """ "tuning", "final" or "cost"."""
    return cell.role if cell.role in ("tuning", "cost") else "final"
