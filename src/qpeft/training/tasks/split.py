"""Training and evaluation examples, each with the name of its class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from qpeft.errors import DataError
from qpeft.training.settings import TrainSettings

Labelled = tuple[Any, str]  # content, class name

_HELD_OUT_EVERY = 20


def read_and_split(
    settings: TrainSettings, read: Callable[[str, str], list[Labelled]], has_validation: Callable[[str], bool]
) -> tuple[list[Labelled], list[Labelled]]:
    """Training and evaluation examples.

    Args:
        settings: The run, with its sources.
        read: Reads the examples of a source, split "train" or "validation".
        has_validation: Whether a source has a validation split.
    """
    rows = read(settings.data, "train")
    if validation := settings.eval_data or (settings.data if has_validation(settings.data) else None):
        return rows, read(validation, "validation")
    return hold_out(rows, settings.data)


def hold_out(rows: list[Labelled], source: str) -> tuple[list[Labelled], list[Labelled]]:
    """Hold out every 20th example of each class; of a smaller class the last one, if it has two.

    Raises DataError if no class has two examples.
    """
    places = defaultdict(list)
    for place, (_, name) in enumerate(rows):
        places[name].append(place)
    chosen = {place for found in places.values() for place in _held_out(found)}
    if not chosen:
        raise DataError(f"{source} has only one example of each class, and none for evaluation; set eval_data")
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]


def _held_out(places: list[int]) -> list[int]:
    if len(places) >= _HELD_OUT_EVERY:
        return places[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
    return places[-1:] if len(places) > 1 else []
