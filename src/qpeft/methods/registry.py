"""The table of all methods, and their registration with PEFT, without a fork or a patch.

Each sub-package defines one record, METHOD; `stock.py` defines those of PEFT.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from qpeft.checks import check_registered, unknown
from qpeft.errors import ConfigError
from qpeft.methods.method import Method, Trains, imported
from qpeft.methods.stock import METHODS as STOCK
from qpeft.user_code import execute, is_file

# internals are used; before this patch PEFT fails with transformers 5.18 and later
SUPPORTED_PEFT = ">=0.21.2,<0.22"
_MINOR = ["0", "21"]
_OLDEST_PATCH = 2

_registered: dict[str, Method] = {}


@cache
def _own() -> dict[str, Method]:
    """qpeft's methods, quantum methods first and among them those for any host; then PEFT's."""
    folder = str(Path(__file__).parent)
    names = [module.name for module in pkgutil.iter_modules([folder]) if module.ispkg]
    own = [import_module(f"qpeft.methods.{name}").METHOD for name in names]
    own.sort(key=lambda method: (method.kind != "quantum", method.generator is None))
    return {method.key: method for method in (*own, *STOCK)}


def records() -> list[Method]:
    """Every registered method, qpeft's first."""
    return [*_own().values(), *_registered.values()]


def keys() -> tuple[str, ...]:
    """Names of the methods that can be trained."""
    return tuple(method.key for method in records() if method.trains is not Trains.NOTHING)


def hosts() -> tuple[str, ...]:
    """Names of the methods whose adapter a generator can produce."""
    return tuple(method.key for method in records() if method.is_host)


def get(name: str) -> Method:
    """The method of a key, or of FILE.py:NAME. The file is executed and its record registered.

    For names given by a user in a call, a command or a study file; never for names in a checkpoint.

    Raises ConfigError if there is no such method (the message shows the nearest name), the file
    cannot be executed, or NAME is not a Method in it.
    """
    if is_file(name):
        in_file = vars(execute(name, "method")).get(name.rpartition(":")[2])
        if not isinstance(in_file, Method):
            raise ConfigError(f"method {name}: the file has no qpeft.methods.Method of this name")
        register(in_file)
        return in_file
    method = _own().get(name) or _registered.get(name)
    if method is None:
        raise ConfigError(unknown("method", name, keys()))
    return method


def of_config(config: Any) -> Method | None:
    """The first method with configs of this type; None if the config is of no registered method."""
    return next((method for method in records() if imported(method.config) is type(config)), None)


def register(method: Method) -> None:
    """Make a method of your own known to PEFT, to `qpeft.load`, and to every command.

    Call it where the classes are defined, because that module must be imported before such an
    adapter is loaded. `qpeft.testing.adapter_contract` tests the method. Registering a record with
    a config of the same module and qualified name again replaces the earlier one, so that a
    notebook's cell can be executed twice.

    Raises ConfigError if it is not a Method, or another method has its key or the `peft_type` of
    its config.
    """
    if not isinstance(method, Method):
        raise ConfigError(f"register takes a qpeft.methods.Method, got {method!r}")
    earlier = _registered.get(method.key)
    # a method of qpeft cannot be replaced, one with a config of the same name can
    old = _own().get(method.key) or (earlier and earlier.config)
    check_registered("method", method.key, method.config, old)
    register_with_peft(method)
    _registered[method.key] = method


def register_all() -> None:
    """Register every method of the table with PEFT; safe to call again. Called when peft is
    imported.

    Raises ConfigError if the version of peft is not supported.
    """
    import peft
    from peft import mapping

    *minor, patch = peft.__version__.split(".")[:3]
    if minor != _MINOR or int(patch) < _OLDEST_PATCH:
        raise ConfigError(
            f"qpeft works with peft {SUPPORTED_PEFT}, found {peft.__version__}; "
            f"install it with: pip install 'peft{SUPPORTED_PEFT}'"
        )
    attached = Method(
        key="attached",
        title="",
        config="qpeft.methods.attach:AttachedConfig",
        tuner="qpeft.methods.attach:AttachedTuner",
    )
    tables: Any = (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, mapping.PEFT_TYPE_TO_TUNER_MAPPING)
    with_tuner = [method for method in _own().values() if method.tuner is not None]
    for method in (*with_tuner, attached):
        name = f"QPEFT_{method.key.upper()}"
        for table in tables:
            table.setdefault(name, _Unimported(method, table, name))


class _Unimported:
    """Stands in a table of PEFT for a class that is imported, and then registered itself, when PEFT
    uses it.
    """

    def __init__(self, method: Method, table: dict[Any, Any], name: str) -> None:
        self.method = method
        self._table = table
        self._name = name

    def _imported(self) -> Any:
        register_with_peft(self.method)
        return self._table[self._name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._imported()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._imported(), name)


def register_with_peft(method: Method) -> None:
    """Register the config and tuner of a method with PEFT, if it has a tuner of its own."""
    if method.tuner is None:
        return
    from peft import mapping

    from qpeft.core.config import MethodName

    config = method.config_class
    tuner = imported(method.tuner)
    kind = getattr(config(), "peft_type", None)
    if kind is None:
        raise ConfigError(
            f'the config of method {method.key} must set peft_type = MethodName("...")'
        )
    name = MethodName(str.__str__(getattr(kind, "value", kind)))
    configs: dict[Any, Any] = mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    tuners: dict[Any, Any] = mapping.PEFT_TYPE_TO_TUNER_MAPPING
    prefixes: dict[Any, Any] = mapping.PEFT_TYPE_TO_PREFIX_MAPPING
    for table, new in ((configs, config), (tuners, tuner)):
        old = table.get(name)
        if not (isinstance(old, _Unimported) and old.method is method):
            check_registered("PEFT type", name.value, new, old)
    # only the start, because PEFT warns of adapter names within it, such as "en"
    prefixes[name] = (getattr(tuner, "container", None) or tuner.prefix)[:4]
    configs[name] = config
    tuners[name] = tuner
