"""Register methods with PEFT, without a fork or a patch."""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft import PeftConfig, mapping

from qpeft.core.config import MethodName
from qpeft.core.generator_registry import register_generator
from qpeft.errors import ConfigError
from qpeft.methods.attach.attach import AttachedTuner
from qpeft.methods.attach.config import ATTACHED, AttachedConfig
from qpeft.methods.method import Method
from qpeft.methods.registry import on_register, records
from qpeft.names import check_name, redefines

SUPPORTED_PEFT = ("0.21", "0.22")  # minimum and excluded maximum, because internals are used


def register_all() -> None:
    """Register every method of the table with PEFT; safe to call again.

    Raises:
        ConfigError: peft's version is not supported, or another package took a name.
    """
    low, high = SUPPORTED_PEFT
    if not Version(low) <= Version(peft.__version__) < Version(high):
        raise ConfigError(
            f"qpeft works with peft from {low} and below {high}, found {peft.__version__}; "
            f"install it with: pip install 'peft>={low},<{high}'"
        )
    register_method(ATTACHED, AttachedConfig, AttachedTuner)
    for record in records():
        register_record(record)
    on_register(register_record)


def register_record(record: Method) -> None:
    """Register the record's config and tuner with PEFT, and its generator for `attach`, if it has them."""
    if record.generator is not None:
        register_generator(record.key, record.generator_class)
    if record.tuner is not None:
        name = type_set_by(record.config_class)
        if name is None:
            raise ConfigError(f"the config of method {record.key} must have a default for every field")
        register_method(MethodName(name), record.config_class, record.tuner_class)


def register_method(name: MethodName, config: type[PeftConfig], tuner: Any) -> None:
    """Register a method of your own with PEFT, for `get_peft_model`, `from_pretrained` and `qpeft.load`.

    `qpeft.methods.register` includes this and registers the method for the commands as well. Call it where the classes
    are defined, because that module must be imported before such an adapter is loaded. `qpeft.testing.adapter_contract`
    tests the method. Classes of the same module and qualified name replace the earlier ones, so that a notebook's cell
    can be executed twice.

    Args:
        name: The `peft_type` that `config` sets, as in adapter_config.json.
        config: A PEFT config, such as a subclass of `GeneratedLoraConfig`.
        tuner: The tuner class, such as `GeneratedMixin` before `LoraModel`.

    Raises:
        ConfigError: PEFT, or another package, has a method of this name; it is no MethodName, or another than
            `config()` sets; `config` or `tuner` is no such class.
    """
    _check_method(name, config, tuner)
    # of the names of its modules; only the start, because PEFT warns of adapter names within it, such as "en"
    prefix = (getattr(tuner, "container", None) or tuner.prefix)[:4]
    entries: list[tuple[dict[Any, Any], Any]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, prefix),
    ]
    for table, value in entries:
        if not isinstance(value, str) and not redefines(value, table.get(name, value)):
            raise ConfigError(f"PEFT type {name.value} is already taken by {table[name]}; choose another name")
    if (found := type_set_by(config)) not in (None, name):
        raise ConfigError(
            f"{config.__name__} sets peft_type to {found!r}: register it under this name, not {name.value!r}"
        )
    for table, value in entries:
        table[name] = value


def _check_method(name: Any, config: Any, tuner: Any) -> None:
    if not isinstance(name, MethodName):
        raise ConfigError(f'register_method needs a MethodName, such as MethodName("NOLA"), got {name!r}')
    check_name(name.value)
    if not (isinstance(config, type) and issubclass(config, PeftConfig)):
        raise ConfigError(f"register_method needs a config that is a class over PeftConfig, got {config!r}")
    if not (isinstance(tuner, type) and (hasattr(tuner, "container") or hasattr(tuner, "prefix"))):
        raise ConfigError(f"register_method needs a tuner that is a class over one of PEFT's tuners, got {tuner!r}")


def type_set_by(config: type[PeftConfig]) -> str | None:
    """The `peft_type` of `config()`; None for a config with fields that must be given."""
    try:
        found = config().peft_type
    except (TypeError, ValueError):
        return None
    return str(getattr(found, "value", found))
