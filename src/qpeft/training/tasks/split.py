"""Examples to train on and others to be scored on, each with the name of its class."""

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
    """Examples for training and for evaluation.

    Args:
        settings: Names the sources.
        read: Gives the examples of a source's part, "train" or "validation".
        has_validation: Whether a source has a part made for validation.
    """
    rows = read(settings.data, "train")
    if validation := settings.eval_data or (settings.data if has_validation(settings.data) else None):
        return rows, read(validation, "validation")
    return hold_out(rows, settings.data)


def hold_out(rows: list[Labelled], source: str) -> tuple[list[Labelled], list[Labelled]]:
    """Every 20th example of each class apart; of a class with fewer, its last one, if it has two.

    Raises DataError if no class can spare one.
    """
    places = defaultdict(list)
    for place, (_, name) in enumerate(rows):
        places[name].append(place)
    chosen = {place for found in places.values() for place in _spared(found)}
    if not chosen:
        raise DataError(f"{source} has one example of each class, and none to be scored on; name eval_data")
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]


def _spared(places: list[int]) -> list[int]:
    if len(places) >= _HELD_OUT_EVERY:
        return places[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
    return places[-1:] if len(places) > 1 else []
