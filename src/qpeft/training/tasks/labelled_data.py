"""Labelled examples: class names and their order, numbers, and the split into training and evaluation data."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from qpeft.errors import DataError, setting

Labelled = tuple[Any, Any]  # content, class name or number

_HELD_OUT_EVERY = 20
_LARGEST = 1e15  # its square, times the number of a model's parameters in a gradient's norm, is finite in float32


def collect_labels(found: Iterable[str], source: str, known: Sequence[str]) -> tuple[str, ...]:
    """The classes of training data, sorted by value if all are integers, otherwise by name.

    If the base has exactly these classes, `known`, its order is kept, because its head has that order. Raises DataError
    for fewer than two classes.
    """
    names = set(found)
    if len(names) < 2:
        raise DataError(
            f"{source} has only the class {next(iter(names))!r}; give examples of at least two classes, or set another "
            "label_column"
        )
    if names == set(known) and len(known) == len(names):
        return tuple(known)
    return tuple(sorted(names, key=int if all(map(_is_integer, names)) else None))


def label_name(value: Any, where: str) -> str:
    """A label, an integer or a text, as a class name. Raises DataError, which names `where`, for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table with missing values stores integers as floats
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    found = "nothing" if value is None or value == "" else f"{value!r}"
    raise DataError(f"{where}: the label is {found}; give each example an integer or a class name")


def label_number(value: Any, where: str) -> float:
    """A label as a number. Raises DataError, which names `where`, for anything else and more than 1e15."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if abs(number) <= _LARGEST:
        return number
    if math.isfinite(number):
        raise DataError(
            f"{where}: the label is {value!r}, and the largest allowed is {_LARGEST:g}: squared errors are float32; "
            "scale the labels, for example by their standard deviation"
        )
    found = "nothing" if value is None or value == "" else f"{value!r}"
    raise DataError(f"{where}: the label is {found}; give each example a finite number")


def _is_integer(name: str) -> bool:
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) is not None


def hold_out(rows: list[Labelled], source: str, has_classes: bool = True) -> tuple[list[Labelled], list[Labelled]]:
    """Hold out every 20th example of each class; of a smaller class the last one, if it has two.

    Without classes all examples count as one class. Raises DataError if no class has two examples.
    """
    by_class = defaultdict(list)
    for place, (_, name) in enumerate(rows):
        by_class[name if has_classes else None].append(place)
    chosen = {place for places in by_class.values() for place in _held_out(places)}
    if not chosen:
        raise DataError(
            f"{source} has only one example{' of each class' * has_classes}, and none for evaluation; set "
            f"{setting('eval_data')}"
        )
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]


def _held_out(places: list[int]) -> list[int]:
    if len(places) >= _HELD_OUT_EVERY:
        return places[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
    return places[-1:] if len(places) > 1 else []
