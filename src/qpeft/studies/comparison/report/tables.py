"""A table as data: what a cell says, what it is sorted by, whether its column is of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qpeft.studies.comparison.report.marks import Mark
from qpeft.studies.comparison.report.numbers import MISSING


@dataclass(frozen=True)
class Column:
    """`title` with its `unit`; `hint` is told by the pointer. Numbers stand at the right, and have one width."""

    title: str
    unit: str = ""
    is_number: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """`order` is what the column is sorted by; cells without one go last, whichever way."""

    text: str
    order: float | str | None = None
    mark: Mark | None = None
    kind: str = ""  # a CSS class: "verdict better", "chosen"


@dataclass(frozen=True)
class Table:
    """`rows` are lists of cells, the first of which names the row."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]] = field(default_factory=list)

    def without_empty(self) -> Table:
        """The table less the columns in which no row says anything."""
        kept = [
            i for i in range(len(self.columns)) if i == 0 or any(row[i].text not in ("", MISSING) for row in self.rows)
        ]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table(self.name, self.caption, [self.columns[i] for i in kept], rows)
