"""Checks of registered names of circuits, generators and methods, and the message for an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from qpeft.errors import ConfigError


def check_name(name: Any) -> None:
    """Raise ConfigError unless `name` is a non-empty string without ":"."""
    if not isinstance(name, str) or not name.strip() or ":" in name:  # --ansatz FILE.py:NAME
        raise ConfigError(f"a registered name must be a non-empty string without ':', got {name!r}")


def redefines(new: Any, old: Any) -> bool:
    """Whether `new` is `old`, or the same definition executed again, in a notebook cell or by importlib.reload.

    The same definition means the same module and qualified name. qpeft's own definitions cannot be redefined.
    """
    places = [(getattr(part, "__module__", None), getattr(part, "__qualname__", None)) for part in (new, old)]
    foreign = None not in places[0] and str(places[0][0]).split(".")[0] != "qpeft"
    return new is old or (foreign and places[0] == places[1])


def unknown(what: str, value: Any, choices: Iterable[str]) -> str:
    """`unknown method 'lroa'; did you mean 'lora'? Choose one of qpa, lora, ...`"""
    choices = list(choices)
    nearest = get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {nearest[0]!r}? Choose" if nearest else "choose"
    return f"unknown {what} {value!r}; {hint} one of {', '.join(choices)}"
