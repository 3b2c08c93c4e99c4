"""Names under which circuits, generators and methods are registered, and the nearest one to a typo."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from qpeft.errors import ConfigError


def check_name(name: Any) -> None:
    """Raise ConfigError unless `name` is a text of at least one letter and without ":"."""
    if not isinstance(name, str) or not name.strip() or ":" in name:  # --ansatz FILE.py:NAME
        raise ConfigError(f"a name to register must be a text that is not empty and has no ':', got {name!r}")


def redefines(new: Any, old: Any) -> bool:
    """Whether `new` is `old`, or its definition run again: by a notebook's cell, by importlib.reload.

    Another class or function of the same module and qualified name is one; never of one of qpeft's own.
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
