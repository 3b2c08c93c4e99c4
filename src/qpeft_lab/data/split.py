"""Held-out data, evenly spaced choices, and examples that are in both parts of the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from qpeft.errors import DataError

Item = TypeVar("Item")
Labelled = tuple[Any, Any]  # content, class name or number

HELD_OUT_EVERY = 20
_LONG_LINE = 8  # words


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
            f"{source} has only one example{' of each class' * has_classes}, and none for evaluation; set eval_data"
        )
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]


def _held_out(places: list[int]) -> list[int]:
    if len(places) >= HELD_OUT_EVERY:
        return places[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return places[-1:] if len(places) > 1 else []


def spread(limit: int, items: list[Item]) -> list[Item]:
    """At most `limit` items, evenly spaced; 0 takes all."""
    if not limit or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def count_shared(training: Iterable[Any], others: Iterable[Any]) -> tuple[int, int]:
    """How many of `others` are in `training`, and how many there are."""
    known, found = set(training), list(others)
    return sum(item in known for item in found), len(found)


def long_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of texts that are too long to be equal by chance, without white space."""
    lines = [line.split() for row in rows if "text" in row for line in row["text"].splitlines()]
    return [" ".join(words) for words in lines if len(words) >= _LONG_LINE]
