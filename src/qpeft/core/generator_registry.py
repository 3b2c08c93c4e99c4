"""Generators by name: what `qpeft.attach` takes, and what a compact folder calls it."""

from __future__ import annotations

from dataclasses import is_dataclass

from qpeft.errors import CheckpointError, ConfigError
from qpeft.generator_config import GeneratorConfig
from qpeft.names import check_name, redefines

_configs: dict[str, type[GeneratorConfig]] = {}


def register_generator(name: str, config: type[GeneratorConfig]) -> None:
    """Let `qpeft.attach` take settings of the class `config`, and compact folders call its generator `name`.

    Call it where the class is defined: whoever loads such a folder imports that module first.
    `qpeft.testing.generator_contract` checks what the generator owes its users.

    A class of the same module and qualified name replaces the earlier one: a notebook's cell can be run again.

    Raises:
        ConfigError: another generator has this name, it is none, or `config` is no dataclass of `GeneratorConfig`.
    """
    check_name(name)
    if not (isinstance(config, type) and issubclass(config, GeneratorConfig) and is_dataclass(config)):
        raise ConfigError(f"register_generator takes a dataclass that is a GeneratorConfig, got {config!r}")
    if not redefines(config, _configs.get(name, config)):
        raise ConfigError(f"there is a generator '{name}' already; choose another name than {', '.join(_configs)}")
    _configs[name] = config


def generator_config(name: str) -> type[GeneratorConfig]:
    """The class of settings that was registered as `name`.

    Raises:
        CheckpointError: there is none.
    """
    if name not in _configs:
        raise CheckpointError(
            f"this adapter's parameters come from the generator '{name}', which is not known here: import the module "
            "that registers it (qpeft.register_generator), then load again"
        )
    return _configs[name]


def generator_name(config: object) -> str:
    """What the class of `config` was registered as.

    Raises:
        ConfigError: it was not.
    """
    for name, registered in _configs.items():
        if type(config) is registered:
            return name
    raise ConfigError(
        f"attach takes a QPAGeneratorConfig, or settings of a generator of yours, got {type(config).__name__}; "
        "qpeft.register_generator makes yours known"
    )
