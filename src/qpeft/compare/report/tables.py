"""A table as data, column by column: what a cell says, what it is sorted by, whether its column is of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.compare.report.marks import Mark
from qpeft.compare.report.numbers import MISSING


@dataclass(frozen=True)
class Cell:
    """`order` is what the column is sorted by; cells without one go last, whichever way."""

    text: str
    order: float | str | None = None
    mark: Mark | None = None
    kind: str = ""  # a CSS class: "verdict better", "chosen"


@dataclass(frozen=True)
class Column:
    """`title` with its `unit`; `hint` is told by the pointer. Numbers stand at the right, and have one width."""

    title: str
    cells: Sequence[Cell]
    unit: str = ""
    hint: str = ""
    is_number: bool = True

    @property
    def is_empty(self) -> bool:
        return all(cell.text in ("", MISSING) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """The first column names the rows; of the others, those in which no row says anything are not shown."""

    name: str
    caption: str
    all_columns: Sequence[Column]

    @property
    def columns(self) -> list[Column]:
        first, *others = self.all_columns
        return [first, *(column for column in others if not column.is_empty)]

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return list(zip(*(column.cells for column in self.columns), strict=True))
