"""Fields of settings dataclasses, and their validation from their own metadata."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any

from qpeft.errors import ConfigError, setting
from qpeft.names import unknown

MOST = 2**31 - 1  # of every count


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field with a help text, for the command line and the documentation, and limits for `check_fields`.

    If `default` is a class, such as list, the default is a new instance.
    """
    metadata["help"] = text
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(settings: Any, owner: type | None = None, skip: Collection[str] = ()) -> None:
    """Raise ConfigError, with the field, its value and what is allowed, if a field is out of range.

    Fields with a help text are checked. The annotation allows booleans, texts, whole numbers, finite numbers or None;
    `choices`, `at_least`, `above`, `at_most` and `below` in the metadata limit the values.

    Args:
        owner: Check only the fields of this base class. Default: all fields.
        skip: Names of fields that are checked elsewhere.
    """
    for known in fields(owner or type(settings)):
        if "help" in known.metadata and known.name not in skip:
            check_value(known, getattr(settings, known.name))


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_value(known: Field[Any], value: Any) -> None:
    """As `check_fields`, for one field."""
    kinds = {part.strip() for part in str(getattr(known.type, "__name__", known.type)).split("|")}
    check_text(value)
    if value is None and "None" in kinds:
        return
    if choices := known.metadata.get("choices"):
        if value not in choices:
            raise ConfigError(unknown(setting(known.name), value, map(str, choices)))
    elif "bool" in kinds:
        if not isinstance(value, bool):
            raise ConfigError(f"{setting(known.name)} must be True or False, got {value!r}")
    elif kinds <= {"str", "None"}:
        if not isinstance(value, str):
            raise ConfigError(f"{setting(known.name)} must be a text, got {value!r}")
    elif kinds & {"int", "float"}:
        _check_number(known, value, whole="float" not in kinds)


def check_text(value: object) -> None:
    """Raise ConfigError for a text or path that is not valid UTF-8: files and tokenizers could not contain it."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{str(value)!a} is not valid UTF-8; rename the file, or set PYTHONUTF8=1 if its name is UTF-8"
        ) from None


def _check_number(known: Field[Any], value: Any, *, whole: bool) -> None:
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    try:
        is_allowed_kind = is_number and math.isfinite(value)
    except OverflowError:
        raise ConfigError(f"{setting(known.name)} must be smaller than 1e308") from None
    if not is_allowed_kind:
        kind = "whole" if whole else "finite"
        raise ConfigError(f"{setting(known.name)} must be a {kind} number, got {value!r}")
    for rule, is_allowed in _LIMITS.items():
        limit = known.metadata.get(rule)
        if limit is not None and not is_allowed(value, limit):
            raise ConfigError(f"{setting(known.name)} must be {rule.replace('_', ' ')} {limit:,}, got {value}")


_LIMITS = {
    "at_least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at_most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
