"""Labels of examples: names of classes and their order, numbers; rows of labelled texts; and
held-out examples.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from qpeft.errors import DataError, DataWarning
from qpeft_lab.data.files import Row
from qpeft_lab.data.names import parse_source
from qpeft_lab.data.sources import kept_rows, load_rows, note_empty, note_unread

if TYPE_CHECKING:
    from qpeft_lab.settings import SharedSettings

Labelled = tuple[Any, Any]  # content, class name or number

HELD_OUT_EVERY = 20
_COLUMNS = ("text_column", "text_pair_column", "label_column")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# its square, times the number of a model's parameters in a gradient's norm, is finite in float32
_LARGEST = 1e15


def collect_labels(labels: Iterable[str], source: str, known: Sequence[str]) -> tuple[str, ...]:
    """The classes of training data, sorted by value if all are integers, otherwise by name.

    If the base has exactly these classes, `known`, its order is kept, because its head has that
    order. Raises DataError for fewer than two classes, and warns of two that are the same number.
    """
    names = set(labels)
    by_number = dict[float, str]()
    for name in sorted(names):
        try:
            same = by_number.setdefault(float(name), name)
        except ValueError:
            continue
        if same != name:
            found = f"{source} has the classes {same!r} and {name!r}, which are the same number"
            warnings.warn(DataWarning(f"{found}; they are taken as two"), stacklevel=2)
    if len(names) < 2:
        raise DataError(
            f"{source} has only the class {next(iter(names))!r}; give examples of at least two"
            " classes, or set another label_column"
        )
    if names == set(known) and len(known) == len(names):
        return tuple(known)
    return tuple(sorted(names, key=int if all(map(_INTEGER.fullmatch, names)) else None))


def label_name(value: Any, where: str) -> str:
    """A label, an integer or a text, as a class name. Raises DataError, which names `where`, for
    anything else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table with missing values stores integers as floats
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise DataError(
        f"{where}: the label is {_shown(value)}; give each example an integer or a class name"
    )


def label_number(value: Any, where: str) -> float:
    """A label as a number. Raises DataError, which names `where`, for anything else and more than
    1e15.
    """
    number = math.nan
    is_text = isinstance(value, str)
    # float() also reads "1_0" as 10, and digits of other scripts
    is_plain = is_text and value.isascii() and "_" not in value
    if is_plain or (isinstance(value, int | float) and not isinstance(value, bool)):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if abs(number) <= _LARGEST:
        return number
    raise DataError(
        f"{where}: the label is {_shown(value)}; give each example a finite number, at most"
        f" {_LARGEST:g}"
    )


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else f"{value!r}"


def load_labelled_texts(
    source: str, split: str, run: SharedSettings, label: Callable[[Any, str], Any]
) -> list[tuple[tuple[str, ...], Any]]:
    """The texts, or pairs of texts, of a source with their labels; rows without a text are left
    out, with a warning.

    `run` names the columns; `label` checks a label. Raises DataError.
    """
    columns = {name: getattr(run, name) for name in _COLUMNS if getattr(run, name) is not None}
    rows = _with_header(source, load_rows(source, split), list(columns.values()))
    for name, column in columns.items():
        if column not in rows[0]:
            present = ", ".join(str(name)[:40] for name in rows[0])
            raise DataError(
                f"{source} has the columns {present}, but no {column!r}; set {name}, or add a first"
                " line with the names if there is none"
            )
    *of_text, of_label = columns.values()
    # such as the second text of a pair; a number of the row is none
    texts_of_rows = (name for row in rows for name, value in row.items() if isinstance(value, str))
    note_unread(source, columns.values(), dict.fromkeys(texts_of_rows))
    kept = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        for column in of_text:
            if not isinstance(row.get(column), str | None):
                raise DataError(
                    f"{where}: column {column!r} has a {type(row[column]).__name__}, not a str"
                )
        texts = tuple(row.get(column) or "" for column in of_text)
        value = label(row.get(of_label), where)
        if any(text.strip() for text in texts):
            kept.append((texts, value))
    for column, texts in zip(
        of_text, zip(*(texts for texts, _ in kept), strict=True), strict=False
    ):
        note_empty(source, column, texts)
    return kept_rows(source, kept, len(rows), "no text")


def _with_header(source: str, rows: list[Row], names: list[str]) -> list[Row]:
    """The rows of a table, whose first line counts as a row if it has no names of columns: it has
    as many entries as `names`, none of them, and the last one is a label like those of other rows.
    """
    first = list(rows[0])
    if len(first) != len(names) or not {*first}.isdisjoint(names):
        return rows
    *_, last = first
    if last not in {str(row.get(last)) for row in rows}:
        return rows
    name = parse_source(source)
    if name.is_local and name.path.is_dir():  # the first lines of its other files were lost
        raise DataError(f"a table of {source} has no line with names of columns; add it to each")
    warnings.warn(
        DataWarning(f"{source} has no line with names of columns; taken as {', '.join(names)}"),
        stacklevel=2,
    )
    lines = [first, *(list(row.values()) for row in rows)]
    return [dict(zip(names, line, strict=True)) for line in lines]


def hold_out(
    rows: list[Labelled], source: str, has_classes: bool = True
) -> tuple[list[Labelled], list[Labelled]]:
    """Hold out every 20th example of each class; of a smaller class the last one, if it has two.

    Without classes all examples count as one class. Raises DataError if no class has two examples.
    """
    by_class = defaultdict(list)
    for place, (_, name) in enumerate(rows):
        by_class[name if has_classes else None].append(place)
    chosen = set[int]()
    for places in by_class.values():
        chosen |= {*(places[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or places[1:][-1:])}
    if not chosen:
        raise DataError(
            f"{source} has only one example{' of each class' * has_classes}, and none for"
            " evaluation; set eval_data"
        )
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]
