"""Events of a running study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpeft_lab.compare.cell import Cell
    from qpeft_lab.compare.rows import Row


class CompareProgress:
    """Receives the events of a comparison, in the process of the runner; this base class ignores them.

    Methods should return quickly.
    """

    def on_total(self, n_cells: int, n_finished: int) -> None:
        """The study has `n_cells`, of which `n_finished` have rows. A grid of learning rates may extend itself."""

    def on_start(self, cell: Cell) -> None:
        """A cell starts or resumes."""

    def on_step(self, cell: Cell, done: int, total: int) -> None:
        """`done` of the cell's `total` steps are done."""

    def on_row(self, cell: Cell, row: Row) -> None:
        """A cell ended or failed, and its row is written."""

    def on_note(self, text: str) -> None:
        """A note for the user."""
