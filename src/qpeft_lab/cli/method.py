"""The options of a fine-tuning method, shared by every command that takes `--method`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Annotated, Any

from qpeft.backends import BackendSettings
from qpeft.checks import check_fields, option, without_effect
from qpeft.errors import ConfigError
from qpeft.methods import records
from qpeft.methods.method import imported
from qpeft_lab.cli.options import Fields, flag
from qpeft_lab.files import parse_yaml
from qpeft_lab.settings import RunSettings
from qpeft_lab.user_files import FRAMES, named_ansatz

_PANEL = "The adapter (fields of PEFT)"
_NAMES = re.compile(r"(?!all-linear$)[\w.,-]+")  # PEFT reads another text as a regular expression
_HIDDEN = ("seed", "out_slices")  # the run has a seed; slices are for configs in Python


@dataclass
class _Given:
    """PEFT's own fields that the command line offers (importing peft for their help would cost
    seconds), and others.
    """

    r: int | None = option(None, "Rank of the update. Default: that of the method.", at_least=1)
    lora_alpha: int | None = option(
        None, "Scale of the update, which is multiplied by lora_alpha / r."
    )
    target_modules: list[str] | str | None = option(
        None, "Modules to adapt, by the end of their name, or all-linear (all but the output head)."
    )
    lora_dropout: float = option(
        0.0,
        "Dropout on the input of the adapter during training.",
        at_least=0,
        below=1,
        panel=_PANEL,
    )
    num_virtual_tokens: int | None = option(
        None, "Number of virtual tokens of a prefix or prompt.", at_least=1, panel=_PANEL
    )
    preset: str | None = option(
        None, "QPA as published; explicit options take precedence.", choices=("paper", "official")
    )
    set: list[str] | None = option(
        None,
        "A field of the method's config that has no option, such as those of your own method. May"
        " be repeated.",
        metavar="NAME=VALUE",
        repeated=True,
    )


_GENERATORS = {
    method.key: Fields(imported(method.options), f"Method {method.key}", leave_out=_HIDDEN)
    for method in records()
    if method.options is not None
}
BackendOptions = Annotated[
    dict[str, Any], Fields(BackendSettings, "Backend: where circuits run in training")
]
MethodOptions = Annotated[dict[str, Any], Fields(_Given), *_GENERATORS.values()]


def method_settings(run: RunSettings, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the method that its options, --set and --preset give; other fields keep the
    method's defaults.

    Raises ConfigError for an unknown preset or field, a field given twice, an option of another
    method's generator, or a value out of range.
    """
    given = {name: value for name, value in options.items() if name not in ("preset", "set")}
    common = {f.name for f in fields(_Given)}
    check_fields(_Given(**{name: value for name, value in options.items() if name in common}))
    named = set(given)
    for text in options.get("set") or []:
        name, value = _name_and_value(text)
        if name in given:
            raise ConfigError(f"{name} is given twice; leave out --set {text}")
        if name == "seed":
            raise ConfigError(
                f"the seed of a run is not a field of its method; replace --set {text} by --seed"
            )
        given[name] = value
    if group := _GENERATORS.get(run.method):  # before the import of PEFT, which takes seconds
        of_frames = {"frame": "gradient"} if FRAMES in given else {}
        values = {f.name: f.default for f in group} | of_frames | given
        check_fields(SimpleNamespace(**values), owner=group.settings, skip=_HIDDEN)
        for sentence in without_effect(SimpleNamespace(**values), group.settings):
            raise ConfigError(sentence)
    own = set(common)
    for method in (run.record, run.adapter):
        of_config = () if method.config is None else fields(method.config_class)
        own |= {f.name for f in (*_GENERATORS.get(method.key, ()), *of_config)}
        for f in of_config:
            value = given.get(f.name)
            if "list[str]" in str(f.type) and isinstance(value, str) and _NAMES.fullmatch(value):
                given[f.name] = value.split(",")
    for name in sorted(named - own):
        if owners := [key for key, group in _GENERATORS.items() if name in {f.name for f in group}]:
            raise ConfigError(
                f"{flag(name)} is not an option of method {run.method}; use --method"
                f" {' or '.join(owners)}"
            )
    preset = options.get("preset")
    return given if preset is None else _preset(run, preset, given) | given


def as_options(method: str, settings: Mapping[str, Any]) -> str:
    """The options with which `method_settings` gives these settings of a method, to copy into a
    shell.
    """
    names = {f.name for f in (*fields(_Given), *_GENERATORS.get(method, ()))}
    words = ["--method", method]
    for name, value in settings.items():
        text = ",".join(value) if isinstance(value, list) else value
        is_option = (
            name in names and isinstance(text, str | int | float) and not isinstance(text, bool)
        )
        words += [flag(name), str(text)] if is_option else ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value in YAML: a number, true, [a list], or a text."""
    name, is_pair, value = text.partition("=")
    with suppress(ValueError):
        if is_pair:
            return name, parse_yaml(value)
    raise ConfigError(f"--set takes NAME=VALUE, such as n_bases=16, got {text!r}")


def _preset(run: RunSettings, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields in which the preset, with the given ones, differs from the method's defaults."""
    made: Any = run.record.generator_class if run.attaches else run.record.config_class
    if not hasattr(made, preset):
        raise ConfigError(
            f"method {run.method} has no preset {preset}; use --method qpa, or leave it out"
        )
    names = {f.name for f in fields(made)}
    values = {
        name: named_ansatz(value) if name == "ansatz" else value for name, value in given.items()
    }
    published = getattr(made, preset)(**{k: v for k, v in values.items() if k in names})
    usual = made()
    return {
        f.name: getattr(published, f.name)
        for f in fields(usual)
        if f.init and "help" in f.metadata and getattr(published, f.name) != getattr(usual, f.name)
    }
