"""The options of a fine-tuning method, shared by every command that takes `--method`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import typer

from qpeft.backends.settings import BackendSettings
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.methods import records
from qpeft.training.settings import TrainSettings


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class AdapterFields:
    """PEFT's own fields that the command line offers; importing peft for their help would cost seconds."""

    r: int = field(default=8, metadata=_help("Rank of the update; the K of Quantum-PEFT's paper."))
    lora_alpha: int | None = field(
        default=None,
        metadata=_help(
            "LoRA's scale: the update is multiplied by lora_alpha / r. Default: 8; of sora 16. With --method "
            "quantum_peft by lora_alpha itself, the paper's s. Default: 16."
        ),
    )
    lora_dropout: float = field(default=0.0, metadata=_help("Dropout before the adapter, in training."))
    target_modules: list[str] | str = field(
        default="all-linear",
        metadata=_help(
            "Modules to adapt, by the end of their name, or all-linear (all but the output head). Default of qaa: the "
            "query and value projections; of bottleneck: the feed-forward blocks."
        ),
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules to train whole, beside the adapter.")
    )
    use_dora: bool = field(default=False, metadata=_help("DoRA: learn the magnitude of each weight column apart."))
    use_rslora: bool = field(default=False, metadata=_help("Scale by lora_alpha / sqrt(r) instead."))
    num_virtual_tokens: int = field(default=10, metadata=_help("Length of a prefix or prompt."))
    bottleneck_size: int = field(
        default=64, metadata=_help("Inner width of the feed-forward adapter, with bottleneck.")
    )


AdapterOptions = Annotated[dict[str, Any], Fields(AdapterFields, panel="The adapter (fields of PEFT)")]

_GENERATORS = {
    method.key: Fields(method.options_class, panel=method.panel, leave_out=method.hidden)
    for method in records()
    if method.options is not None
}

GeneratorOptions = Annotated[dict[str, Any], *_GENERATORS.values()]
BackendOptions = Annotated[
    dict[str, Any], Fields(BackendSettings, panel="Backend: where QPA's circuits run in training")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A published experiment; what you set yourself still wins. QPA: official. Quantum-PEFT: paper_pauli, "
        "paper_taylor.",
    ),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any field of the method's config, such as those of a method of your own; may be repeated.",
    ),
]


def method_settings(
    run: TrainSettings,
    preset: str | None,
    adapter: dict[str, Any],
    generator: dict[str, Any],
    others: list[str] | None = None,
) -> dict[str, Any]:
    """What the user set for the run's method, and what the preset sets; other defaults stay with the method.

    Raises:
        ConfigError: an unknown preset, a generator's options for another method, or a number that PEFT cannot take.
    """
    _check_numbers(adapter)
    _check_generator(run, generator)
    given = {**adapter, **generator, **_parsed(others or [])}
    return given if preset is None else given | _preset(run, preset, given)


def _parsed(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE as YAML reads the value: numbers, true, [lists], texts."""
    import yaml

    found = {}
    for text in given:
        name, is_pair, value = text.partition("=")
        if not is_pair or not name.isidentifier():
            raise ConfigError(f"--set takes NAME=VALUE, such as n_bases=16, got {text!r}")
        found[name] = yaml.safe_load(value)
    return found


def _check_generator(run: TrainSettings, generator: dict[str, Any]) -> None:
    """Refuse options of another method, and name that method."""
    method = run.record
    own = {f.name for f in _GENERATORS.get(method.key, ())}
    foreign = [name for name in generator if name not in own]
    if foreign and method.config is not None:
        known = {f.name for f in fields(method.config_class)}
        foreign = [name for name in foreign if name not in known]
    if not foreign:
        return
    names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
    owners = {key: group for key, group in _GENERATORS.items() if set(foreign) & {f.name for f in group}}
    *first, last = (f"{group.owner}'s" for group in owners.values())
    whose = f"{', '.join(first)} and {last}" if first else last
    raise ConfigError(
        f"{names}: options of {whose} generator, not of method {method.key}; use --method {' or '.join(owners)}"
    )


def _preset(run: TrainSettings, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings in which the preset, under what is given, differs from the method's defaults."""
    if preset not in run.record.presets:
        offered = (method for method in records() if method.presets)
        known = "; ".join(f"{', '.join(method.presets)} of method {method.key}" for method in offered)
        raise ConfigError(f"unknown preset '{preset}' of method {run.method}; there are: {known}")
    made: Any = run.record.generator_class if run.attaches else run.record.config_class
    known_fields = {f.name for f in fields(made)}
    published, usual = getattr(made, preset)(**{k: v for k, v in given.items() if k in known_fields}), made()
    return {
        f.name: getattr(published, f.name)
        for f in fields(usual)
        if f.init and "help" in f.metadata and getattr(published, f.name) != getattr(usual, f.name)
    }


def _check_numbers(adapter: dict[str, Any]) -> None:
    """PEFT looks at these only while it builds the adapter, some of them never."""
    for name in ("r", "num_virtual_tokens", "bottleneck_size"):
        if name in adapter and adapter[name] < 1:
            raise ConfigError(f"{name} must be at least 1, got {adapter[name]}")
    dropout = adapter.get("lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {dropout}")
