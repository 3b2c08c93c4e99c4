"""One table as a pandas frame, and every way to write it: CSV, Markdown, HTML, a terminal.

CSV holds stored values at full precision (`to_csv`). The others show the same text: `Table.frame` is what a reader
sees. HTML is made by the macro `table` of `parts.html.j2`, a terminal's table by `qpeft.cli.console.table`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qpeft.compare.report.format import MISSING

_NUMBER = re.compile(r"[<>+-]? ?\d")


@dataclass(frozen=True)
class Table:
    """`frame` holds text only; its first column names the rows. `hints` explain columns, by their titles."""

    name: str
    caption: str
    frame: pd.DataFrame
    hints: Mapping[str, str]

    @classmethod
    def of(
        cls,
        name: str,
        caption: str,
        items: Sequence[Any],
        columns: Mapping[str, Callable[[Any], str]],
        hints: Mapping[str, str] | None = None,
    ) -> Table:
        """A row for each item. `columns`: by title, the text of an item. Columns without any value are left out."""
        texts = {title: [text(item) for item in items] for title, text in columns.items()}
        frame = pd.DataFrame(texts, dtype=object)
        is_empty = frame.isin(["", MISSING]).all()
        is_empty.iloc[0] = False
        return cls(name, caption, frame.loc[:, ~is_empty], hints or {})

    @property
    def columns(self) -> list[str]:
        return list(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        return self.frame.to_numpy().tolist()

    @property
    def numeric(self) -> set[str]:
        """The columns of numbers, which are aligned to the right."""
        known = {title: self.frame[title][~self.frame[title].isin(["", MISSING])] for title in self.columns[1:]}
        return {title for title, texts in known.items() if all(map(_NUMBER.match, texts))}

    def markdown(self) -> str:
        """A table in GitHub's Markdown."""
        rows = [[markdown_text(cell).replace("|", r"\|") for cell in row] for row in (self.columns, *self.rows)]
        rows.insert(1, ["---"] * len(self.columns))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown_text(text: str) -> str:
    """`text` as one line of Markdown without HTML: names, notes and messages may contain newlines and tags."""
    return " ".join(text.split()).replace("<", r"\<")


def to_csv(records: Iterable[Mapping[str, Any]], first: Sequence[str]) -> str:
    """CSV of records with dotted names, a line each: the columns of `first`, then those of a common prefix together."""
    found = list(records)
    names = list(dict.fromkeys([*first, *(name for record in found for name in record)]))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    names.sort(key=lambda name: groups.index(name.partition(".")[0]))
    return pd.DataFrame(found, columns=names, dtype=object).to_csv(index=False, lineterminator="\n")
