"""The table of all methods. Each sub-package defines one record, METHOD; `stock.py` defines those of PEFT."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError
from qpeft.methods.method import Method, Trains
from qpeft.methods.stock import METHODS as STOCK
from qpeft.names import check_name, redefines, unknown
from qpeft.user_files import execute, is_file

_registered: dict[str, Method] = {}
_from_files: dict[str, Method] = {}  # by FILE.py:NAME
_listeners: list[Callable[[Method], None]] = []  # called with each method that is registered from now on


@cache
def _own() -> dict[str, Method]:
    """qpeft's methods, quantum methods first and among them those for any host; then PEFT's."""
    folder = str(Path(__file__).parent)
    packages = [import_module(f"qpeft.methods.{m.name}") for m in pkgutil.iter_modules([folder]) if m.ispkg]
    found = [package.METHOD for package in packages if hasattr(package, "METHOD")]
    found.sort(key=lambda method: (method.kind != "quantum", method.generator is None))
    return {method.key: method for method in (*found, *STOCK)}


def records() -> list[Method]:
    """Every registered method, qpeft's first."""
    return [*_own().values(), *_registered.values()]


def keys() -> tuple[str, ...]:
    """Names of the methods that can be trained."""
    return tuple(method.key for method in records() if method.trains is not Trains.NOTHING)


def hosts() -> tuple[str, ...]:
    """Names of the methods whose adapter a generator can produce."""
    return tuple(method.key for method in records() if method.is_host)


def find(name: str) -> Method | None:
    """The method registered as `name`, or already read from the file `name`; None if there is none."""
    return _own().get(name) or _registered.get(name) or _from_files.get(name)


def get(key: str) -> Method:
    """The method registered as `key`.

    Raises:
        ConfigError: there is none; the message shows the nearest name.
    """
    if (found := find(key)) is None:
        raise ConfigError(unknown("method", key, keys()))
    return found


def named(name: str) -> Method:
    """The method of a key, or of FILE.py:NAME. The file is executed and its record registered.

    For names given by a user in a call, a command or a study file; never for names in a checkpoint.

    Raises:
        ConfigError: there is no such method, the file cannot be executed, or NAME is not a Method in it.
    """
    if not is_file(name):
        return get(name)
    if name not in _from_files:
        found = _read(name)
        register(found)
        _from_files[name] = found
    return _from_files[name]


def find_by_config(config: Any) -> Method | None:
    """The method with this class of PEFT config; None for PEFT's methods and unregistered ones."""
    own = (method for method in records() if method.tuner is not None)
    return next((method for method in own if method.config_class is type(config)), None)


def register(method: Method) -> None:
    """Make a method known to PEFT and to `train`, `plan`, `compare`, `evaluate`, `generate`, `export`, `diagnose`.

    Registering a record with a config of the same module and qualified name again replaces the earlier one, so that a
    notebook's cell can be executed twice.

    Raises:
        ConfigError: it is not a Method, or another method has its key or `peft_type`.
    """
    if not isinstance(method, Method):
        raise ConfigError(f"register takes a qpeft.methods.Method, got {method!r}")
    check_name(method.key)
    there = find(method.key)
    is_again = there is not None and (there.config == method.config or redefines(method.config, there.config))
    if there is not None and (method.key in _own() or not is_again):
        raise ConfigError(f"there is already a method {method.key!r} ({there.title}); choose another key")
    for listener in _listeners:
        listener(method)
    _registered[method.key] = method


def on_register(listener: Callable[[Method], None]) -> None:
    """Call `listener` with each method that is registered from now on; once, however often it is added."""
    if listener not in _listeners:
        _listeners.append(listener)


def _read(name: str) -> Method:
    attribute = name.rpartition(":")[2]
    found = vars(execute(name, "method"))
    records = {key: value for key, value in found.items() if isinstance(value, Method)}
    if attribute not in records:
        there = ", ".join(records) or "none; define METHOD = qpeft.methods.Method(...)"
        raise ConfigError(f"method {name}: the file has no qpeft.methods.Method called {attribute!r}; it has {there}")
    return records[attribute]
