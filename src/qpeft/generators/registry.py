"""Generators by name: what `qpeft.attach` takes, and what a compact folder calls it."""

from __future__ import annotations

from dataclasses import is_dataclass

from qpeft.errors import CheckpointError, ConfigError
from qpeft.generators.config import GeneratorConfig
from qpeft.generators.settings import QPAGeneratorConfig

_configs: dict[str, type[GeneratorConfig]] = {}


def register_generator(name: str, config: type[GeneratorConfig]) -> None:
    """Let `qpeft.attach` take settings of the class `config`, and compact folders call its generator `name`.

    Call it where the class is defined: whoever loads such a folder imports that module first.
    `qpeft.testing.generator_contract` checks what the generator owes its users.

    Raises:
        ConfigError: another generator has this name, or `config` is no dataclass of `GeneratorConfig`.
    """
    if not (isinstance(config, type) and issubclass(config, GeneratorConfig) and is_dataclass(config)):
        raise ConfigError(f"register_generator takes a dataclass that is a GeneratorConfig, got {config!r}")
    if _configs.setdefault(name, config) is not config:
        raise ConfigError(f"there is a generator '{name}' already; choose another name than {', '.join(_configs)}")


def generator_config(name: str) -> type[GeneratorConfig]:
    """The class of settings that was registered as `name`.

    Raises:
        CheckpointError: there is none.
    """
    if name not in _configs:
        raise CheckpointError(
            f"this adapter's numbers come from the generator '{name}', which is not known here: import the module "
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


register_generator("qpa", QPAGeneratorConfig)
