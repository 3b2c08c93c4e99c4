"""The classes of a classification: their names and their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.errors import DataError


@dataclass(frozen=True)
class Labels:
    """Class names; the index of a class is the position of its name."""

    names: tuple[str, ...]

    def index(self, name: str, source: str) -> int:
        """The index of a class. Raises DataError, which names `source`, for an unknown class."""
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            raise DataError(
                f"{source} has the label {name!r}, not one of the {len(self.names)} trained classes ({known}); "
                "remove its examples, or train on some of them"
            ) from None

    def options(self) -> dict[str, Any]:
        """The fields of a transformers config for these classes."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }


def collect_labels(found: Iterable[str], source: str, known: Sequence[str]) -> Labels:
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
        return Labels(tuple(known))
    return Labels(tuple(sorted(names, key=int if all(map(_is_whole, names)) else None)))


def label_name(value: Any, where: str) -> str:
    """A label, an integer or a text, as a class name. Raises DataError, which names `where`, for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table with missing values stores integers as floats
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    found = "nothing" if value is None or value == "" else f"{value!r}"
    raise DataError(f"{where}: the label is {found}; give each example an integer or a class name")


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and str(int(name)) == name
