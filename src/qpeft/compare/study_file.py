"""Reading a study: a YAML file, or one that is part of qpeft (`BUILT_IN`, `RECIPES`), with fields replaced by options.

All of it is validated before any work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qpeft.compare import BUILT_IN, RECIPES
from qpeft.compare.study import Study, described
from qpeft.errors import ConfigError
from qpeft.names import unknown
from qpeft.training.glue import PREFIX as GLUE
from qpeft.user_files import names_in

_MAX_VALUES = 100_000  # of a file
_WITH_FILES = ("settings", "backend")  # fields of a method in which FILE.py:NAME may appear


def load_study(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """The built-in study of that name, or the study in that file, with `overrides` by dotted name.

    Fields of `training` are those in `overrides`, else those that `by_data` has for the data, else the study's own.

    Raises ConfigError with the name of the study and of the invalid field.

    Example: `load_study("survey", {"training.steps": 50})`
    """
    found, overrides = _read(name_or_path), dict(overrides or {})
    of_data = _training_of(str(overrides.get("data", found.get("data"))), found.get("by_data"))
    _replace(found, {f"training.{name}": value for name, value in of_data.items()})
    _replace(found, overrides)
    try:
        return Study.model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"study {name_or_path}: {described(error)}") from error


def _training_of(data: str, by_data: Any) -> dict[str, Any]:
    """The fields of `training` for these data; local files of a task of GLUE, glue/TASK:SOURCE, count as the task."""
    if not isinstance(by_data, dict):
        return {}
    name = data.partition(":")[0] if data.startswith(GLUE) else data
    of_data = by_data.get(data, by_data.get(name))
    return of_data if isinstance(of_data, dict) else {}


def _replace(found: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set fields by dotted name. A number of steps replaces one of epochs and the reverse."""
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"training.{one}" in changes and isinstance(training := found.get("training"), dict):
            training.pop(other, None)
    for name, value in changes.items():
        _set(found, name, value)


def code_of(name_or_path: str) -> dict[str, list[str]]:
    """The names FILE.py:NAME of a study, under `method`, `ansatz` and `backend`.

    Loading the study executes the files of methods, and a plan of it those of ansaetze.
    """
    found = _read(name_or_path)
    blocks = [block.get("methods") for block in _dicts(found.get("blocks"))]
    specs = [spec for part in (found.get("methods"), *blocks) for spec in _dicts(part)]
    named = [
        names_in(spec.get("method"), *(part if isinstance(part := spec.get(key), dict) else {} for key in _WITH_FILES))
        for spec in specs
    ]
    return {part: sorted({one[part] for one in named if part in one}) for part in ("method", "ansatz", "backend")}


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path).expanduser()
    place: Traversable = path
    if name_or_path in BUILT_IN:
        place = files("qpeft.compare") / "builtin" / f"{name_or_path}.yaml"
    elif not path.is_file():
        if name_or_path not in RECIPES:
            raise ConfigError(
                f"{unknown('study', name_or_path, (*BUILT_IN, *RECIPES))}, or give the path of a YAML file"
            )
        place = files("qpeft.compare") / name_or_path
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"study {name_or_path} cannot be read as text in UTF-8: {error}") from error
    try:
        found = yaml.load(text, _Loader)
        n_values = _count(found, {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"study {name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if n_values > _MAX_VALUES:
        raise ConfigError(
            f"study {name_or_path} has {n_values:.3g} values after its aliases (*name) are expanded; at most "
            f"{_MAX_VALUES} are allowed"
        )
    if not isinstance(found, dict):
        raise ConfigError(f"study {name_or_path} has no fields; it needs `name`, `title`, `question` and `methods`")
    return found


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with a limit for merge keys (<<), which can multiply the values of a small file."""

    n_merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self.n_merged += len(node.value)
        if self.n_merged > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values after its merge keys (<<) are expanded")


def _count(value: Any, counted: dict[int, float]) -> float:
    """The number of values after aliases are expanded; infinity if one contains itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        counted[id(value)] = math.inf
        items = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(item, counted) for item in items)
    return counted[id(value)]


def _set(found: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(found.get(parent), dict):
            found[parent] = {}
        found = found[parent]
    found[last] = value
