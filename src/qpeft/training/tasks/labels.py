"""The classes of a classification: their names, and the order that their indices follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.errors import DataError


@dataclass(frozen=True)
class Labels:
    """Class names; a class's index is its name's place."""

    names: tuple[str, ...]

    def index(self, name: str, source: str) -> int:
        """The index of a class. Raises DataError, naming `source`, for one that was not trained."""
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            raise DataError(
                f"{source} has the label {name!r}, which is not among the {len(self.names)} trained classes ({known}); "
                "leave its examples out, or train on some of them"
            ) from None

    def options(self) -> dict[str, Any]:
        """What a transformers config knows of the classes."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }


def collect_labels(found: Iterable[str], source: str, known: Sequence[str]) -> Labels:
    """The classes of training data, in order: by value where all are whole numbers, else by name.

    Classes of just these names that the base `known` already keep the base's order, for its head follows it.
    Raises DataError for fewer than two classes.
    """
    names = set(found)
    if len(names) < 2:
        raise DataError(
            f"{source} has one class only, {next(iter(names))!r}; give examples of at least two, or name another "
            "label_column"
        )
    if names == set(known) and len(known) == len(names):
        return Labels(tuple(known))
    return Labels(tuple(sorted(names, key=int if all(map(_is_whole, names)) else None)))


def label_name(value: Any, where: str) -> str:
    """A label as a class name: a whole number or a text. Raises DataError, naming `where`, for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # how a table with gaps in its column stores whole numbers
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    found = "nothing" if value is None or value == "" else f"{value!r}"
    raise DataError(f"{where}: the label is {found}; give each example a whole number or a class name")


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and str(int(name)) == name
