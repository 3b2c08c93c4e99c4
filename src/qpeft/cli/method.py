"""The options of a fine-tuning method, shared by every command that takes `--method`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import typer

from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.generators.settings import QPAGeneratorConfig


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class AdapterFields:
    """PEFT's own fields that the command line offers; importing peft for their help would cost seconds."""

    r: int = field(default=8, metadata=_help("LoRA's rank."))
    lora_alpha: int = field(default=8, metadata=_help("LoRA's scale: the update is multiplied by lora_alpha / r."))
    lora_dropout: float = field(default=0.0, metadata=_help("Dropout before the adapter, in training."))
    target_modules: list[str] | str = field(
        default="all-linear",
        metadata=_help("Modules to adapt, by the end of their name, or all-linear (all but the output head)."),
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules to train whole, beside the adapter.")
    )
    use_dora: bool = field(default=False, metadata=_help("DoRA: learn the magnitude of each weight column apart."))
    use_rslora: bool = field(default=False, metadata=_help("Scale by lora_alpha / sqrt(r) instead."))
    num_virtual_tokens: int = field(default=10, metadata=_help("Length of the prefix, with --method prefix."))


AdapterOptions = Annotated[dict[str, Any], Fields(AdapterFields, panel="The adapter (fields of PEFT)")]
GeneratorOptions = Annotated[
    dict[str, Any],
    Fields(QPAGeneratorConfig, panel="QPA: the generator of the adapter's numbers", leave_out=("seed",)),
]
PresetOption = Annotated[
    str | None,
    typer.Option(metavar="official", help="QPA as published: what you set yourself still wins."),
]


def method_settings(
    method: str, preset: str | None, adapter: dict[str, Any], generator: dict[str, Any]
) -> dict[str, Any]:
    """What the user set for the method, and what the preset sets; other defaults stay with the method.

    Raises:
        ConfigError: an unknown preset, QPA's options for another method, or a number that PEFT cannot take.
    """
    _check_numbers(adapter)
    if generator and method != "qpa":
        names = ", ".join(f"--{name.replace('_', '-')}" for name in generator)
        raise ConfigError(f"{names}: settings of QPA's generator, which method {method} has not; use --method qpa")
    given = {**adapter, **generator}
    if preset is None:
        return given
    if preset != "official" or method != "qpa":
        raise ConfigError(f"unknown preset '{preset}' of method {method}; there is one: official, of method qpa")
    from qpeft import QPAConfig

    known = {f.name for f in fields(QPAConfig)}
    published, usual = QPAConfig.official(**{name: given[name] for name in given if name in known}), QPAConfig()
    return given | {
        f.name: getattr(published, f.name)
        for f in fields(usual)
        if f.init and "help" in f.metadata and getattr(published, f.name) != getattr(usual, f.name)
    }


def _check_numbers(adapter: dict[str, Any]) -> None:
    """PEFT looks at these only while it builds the adapter, some of them never."""
    for name in ("r", "num_virtual_tokens"):
        if name in adapter and adapter[name] < 1:
            raise ConfigError(f"{name} must be at least 1, got {adapter[name]}")
    dropout = adapter.get("lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {dropout}")
