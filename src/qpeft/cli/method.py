"""The options of a fine-tuning method, shared by every command that takes `--method`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from qpeft.backends.settings import BackendSettings
from qpeft.checks import check_fields, option
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.methods import Trains, records
from qpeft.training.methods import check_setting, registered
from qpeft.training.settings import TrainSettings


def _help(name: str, text: str) -> str:
    """`text` on a field of PEFT configs, with what the records explain differently and their defaults."""
    defaults: dict[str, list[str]] = {}
    for method in records():
        if name in method.defaults and method.trains is Trains.ADAPTER:
            defaults.setdefault(f"{method.defaults[name]} for ", []).append(method.key)
    notes = [
        f"Method {method.key}: {method.option_notes[name]}." for method in records() if name in method.option_notes
    ]
    values = [value + ", ".join(keys) for value, keys in defaults.items()]
    return " ".join([text, *notes, f"Default: {'; '.join([*values, 'otherwise ' * bool(values) + 'that of PEFT'])}."])


@dataclass
class AdapterFields:
    """PEFT's own fields that the command line offers; importing peft for their help would cost seconds."""

    r: int | None = option(None, _help("r", "Rank of the update."), at_least=1)
    lora_alpha: int | None = option(
        None, _help("lora_alpha", "Scale of the update, which is multiplied by lora_alpha / r.")
    )
    lora_dropout: float = option(0.0, "Dropout on the input of the adapter during training.", at_least=0, below=1)
    target_modules: list[str] | str | None = option(
        None,
        _help("target_modules", "Modules to adapt, by the end of their name, or all-linear (all but the output head)."),
    )
    modules_to_save: list[str] | None = option(None, "Modules that are trained in full, in addition to the adapter.")
    use_dora: bool = option(False, "DoRA: train the magnitude of each weight column separately.")
    use_rslora: bool = option(False, "Multiply the update by lora_alpha / sqrt(r) instead.")
    num_virtual_tokens: int | None = option(
        None, _help("num_virtual_tokens", "Number of virtual tokens of a prefix or prompt."), at_least=1
    )


AdapterOptions = Annotated[dict[str, Any], Fields(AdapterFields, panel="The adapter (fields of PEFT)")]

_GENERATORS = {
    method.key: Fields(method.options_class, panel=method.panel, leave_out=method.hidden)
    for method in records()
    if method.options is not None
}

GeneratorOptions = Annotated[dict[str, Any], *_GENERATORS.values()]
BackendOptions = Annotated[dict[str, Any], Fields(BackendSettings, panel="Backend: where circuits run in training")]
_PRESETS = "; ".join(f"{', '.join(method.presets)} of method {method.key}" for method in records() if method.presets)
PresetOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"A published experiment; explicit options take precedence. One of {_PRESETS}."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A field of the method's config that has no option, such as those of your own method. May be repeated.",
    ),
]


def method_settings(
    run: TrainSettings,
    preset: str | None,
    adapter: dict[str, Any],
    generator: dict[str, Any],
    others: list[str] | None = None,
) -> dict[str, Any]:
    """The fields that the options, `others` (NAME=VALUE) and the preset set; other fields keep the method's defaults.

    Raises:
        ConfigError: an unknown preset or field, a field given twice, an option of another method's generator, or a
            value out of range.
    """
    check_fields(AdapterFields(**adapter))
    _check_generator(run, generator)
    given = {**adapter, **generator}
    for text in others or []:
        name, value = _name_and_value(text)
        if name in given:
            raise ConfigError(f"{name} is given twice; leave out --set {text}")
        if name == "seed":
            raise ConfigError(f"the seed of a run is not a field of its method; replace --set {text} by --seed")
        check_setting(run, name)
        given[name] = value
    return given if preset is None else _preset(run, preset, registered(given)) | given


def as_options(method: str, settings: Mapping[str, Any]) -> str:
    """The options with which `method_settings` gives these settings of a method, to copy into a shell."""
    own = _GENERATORS.get(method, ())
    names = {f.name for f in fields(AdapterFields)} | {f.name for f in own}
    words = ["--method", method]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if name not in names or value is None:
            words += ["--set", f"{name}={json.dumps(value)}"]
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def _name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value in YAML: a number, true, [a list], or a text."""
    import yaml

    name, is_pair, value = text.partition("=")
    try:
        if is_pair and name.isidentifier():
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigError(f"--set takes NAME=VALUE, such as n_bases=16, got {text!r}")


def _check_generator(run: TrainSettings, generator: dict[str, Any]) -> None:
    """Refuse options of other methods than the run's and its host's, and name those methods."""
    own: set[str] = set()
    for method in (run.record, run.adapter):
        own |= {f.name for f in _GENERATORS.get(method.key, ())}
        own |= {f.name for f in fields(method.config_class)} if method.config is not None else set()
    if foreign := generator.keys() - own:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in generator if name in foreign)
        owners = {key: group.owner for key, group in _GENERATORS.items() if foreign & {f.name for f in group}}
        are = "options" if len(foreign) > 1 else "an option"
        raise ConfigError(
            f"{names}: {are} of {' and '.join(owners.values())}, not of method {run.method}; "
            f"use --method {' or '.join(owners)}"
        )


def _preset(run: TrainSettings, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields in which the preset, with the given ones, differs from the method's defaults."""
    if preset not in run.record.presets:
        raise ConfigError(f"unknown preset {preset!r} of method {run.method}; choose one of {_PRESETS}")
    made: Any = run.record.generator_class if run.attaches else run.record.config_class
    names = {f.name for f in fields(made)}
    published, usual = getattr(made, preset)(**{k: v for k, v in given.items() if k in names}), made()
    return {
        f.name: getattr(published, f.name)
        for f in fields(usual)
        if f.init and "help" in f.metadata and getattr(published, f.name) != getattr(usual, f.name)
    }
