"""Events of a running study."""

from __future__ import annotations

from collections.abc import Sequence
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
