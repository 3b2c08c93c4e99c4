"""Validation of settings by the metadata of their fields, of registered names, and the message for
unknown ones.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import Field, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from qpeft.errors import ConfigError, QpeftWarning

MOST = 2**31 - 1  # of every count
MOST_LAYERS = 10_000  # of a circuit; its gates are objects in memory
FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field with a help text, for the command line and the documentation, and limits
    for `check_fields`; `used_with` has, by other fields, the values with which it has an effect.

    If `default` is a class, such as list, the default is a new instance.
    """
    metadata["help"] = text
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(settings: Any, owner: type | None = None, skip: Collection[str] = ()) -> None:
    """Raise ConfigError, with the field, its value and what is allowed, if a field is out of range.

    Fields with a help text are checked. The annotation allows booleans, texts, whole numbers,
    finite numbers or None; `choices`, `at_least`, `above`, `at_most` and `below` in the metadata
    limit the values.

    Args:
        owner: Check only the fields of this base class. Default: all fields.
        skip: Names of fields that are checked elsewhere.
    """
    for known in fields(owner or type(settings)):
        if "help" in known.metadata and known.name not in skip:
            _check_value(known, getattr(settings, known.name))


def warn_without_effect(settings: Any, owner: type) -> None:
    """Warn with QpeftWarning of each field that `without_effect` names."""
    for sentence in without_effect(settings, owner):
        warnings.warn(QpeftWarning(sentence), stacklevel=4)


def without_effect(settings: Any, owner: type) -> Iterator[str]:
    """A sentence for each field of `owner` that differs from its default although the others leave
    it without an effect.
    """
    for known in fields(owner):
        value = getattr(settings, known.name, known.default)
        for other, allowed in known.metadata.get("used_with", {}).items():
            of_other = getattr(settings, other)
            if value != known.default and of_other not in allowed:
                with_others = f"only with {' or '.join(map(repr, allowed))}; leave it out"
                yield f"{known.name}={value!r} has no effect with {other}={of_other!r}, {with_others}"


_KINDS = {  # by their names in annotations
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a finite number"),
    "str": (str, "a text"),
}
_LIMITS: dict[str, Any] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def _check_value(known: Field[Any], value: Any) -> None:
    annotation = getattr(known.type, "__name__", known.type)  # a class, or its text
    kinds = {part.strip() for part in str(annotation).split("|")}
    if value is None and "None" in kinds:
        return
    choices = known.metadata.get("choices")
    if choices:
        if value not in choices:
            raise ConfigError(unknown(known.name, value, map(str, choices)))
        return
    if not kinds <= {*_KINDS, "None"}:
        return
    allowed = [_KINDS[kind] for kind in _KINDS if kind in kinds]
    fits = any(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        for kind, _ in allowed
    )
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        wanted = " or ".join(text for _, text in allowed)
        raise ConfigError(f"{known.name} must be {wanted}, got {value!r}")
    for rule, holds in _LIMITS.items():
        limit = known.metadata.get(rule)
        if limit is not None and not holds(value, limit):
            wanted = f"{rule.replace('_', ' ')} {limit:,}"
            raise ConfigError(f"{known.name} must be {wanted}, got {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Raise ConfigError if a number in `value`, which may be nested as in JSON, is not finite in
    float32.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            check_finite(f"{name}[{key!r}]", part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_finite(name, part)
    elif isinstance(value, (int, float)) and not abs(value) <= FLOAT32_MAX:
        raise ConfigError(f"{name} must be a finite number of type float32, got {value!r}")


def check_registered(what: str, name: Any, new: Any, old: Any = None) -> None:
    """Raise ConfigError if `new` cannot be registered as `name`, where `old` is registered already
    if it is not None.

    A name is a non-empty string without ":". The same definition may be executed again, in a
    notebook cell or by importlib.reload: one of the same module and qualified name, but none of
    qpeft's own.
    """
    if not isinstance(name, str) or not name.strip() or ":" in name:  # --ansatz FILE.py:NAME
        raise ConfigError(f"a registered name must be a non-empty string without ':', got {name!r}")
    places = [
        (getattr(part, "__module__", None), getattr(part, "__qualname__", None))
        for part in (new, old)
    ]
    foreign = None not in places[0] and str(places[0][0]).split(".")[0] != "qpeft"
    if old is not None and new is not old and not (foreign and places[0] == places[1]):
        raise ConfigError(f"there is already the {what} {name!r}; choose another name")


def unknown(what: str, value: Any, choices: Iterable[str]) -> str:
    """`unknown method 'lroa'; did you mean 'lora'? Choose one of qpa, lora, ...`"""
    choices = list(choices)
    close = get_close_matches(str(value), choices)  # the nearest first
    # or letters in another order
    nearest = sorted(close, key=lambda name: sorted(name) != sorted(str(value)))
    hint = f"did you mean {nearest[0]!r}? Choose" if nearest else "choose"
    return f"unknown {what} {value!r}; {hint} one of {', '.join(choices)}"
