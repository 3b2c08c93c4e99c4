"""Limits for the content of a foreign adapter_config.json, checked before PEFT builds anything from it.

A regular expression can take exponential time, and a rank can require any amount of memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from qpeft.errors import ConfigError, setting

SECONDS = 5.0  # for the patterns of a config, on all modules of a model
UNCHECKED = 1024  # sizes up to this need no tensor of that size
_SIZES = (
    *("r", "init_r", "target_r", "u", "num_virtual_tokens", "token_dim", "num_layers", "num_transformer_submodules"),
    "encoder_hidden_size",
)
_COUNTS = ("n_frequency", "theta_d_length")  # of trained values, not the size of a dimension
_CHOICES = "*+?{|"  # two of them can take exponential time

# the forms in which PEFT matches patterns with names
_SCRIPT = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in (rf"(?:{pattern})\Z", rf"(.*\.)?({pattern})$", rf".*\.[^.]*\.{pattern}\.(\d+)\."):
        try:
            compiled = re.compile(form)
        except Exception:
            continue
        for name in names:
            compiled.match(name)
"""


def check_sizes(config: Mapping[str, Any], weights: Path, matrices: Sequence[tuple[int, int]]) -> None:
    """Raise ConfigError if a rank, or another size of the adapter, is larger than every tensor in `weights`.

    That file does not contain the tensors of a generated adapter, for which the base model's `matrices` are a limit
    as well.
    """
    with safe_open(weights, framework="pt") as file:
        largest = max((size for key in file.keys() for size in file.get_slice(key).get_shape()), default=0)  # noqa: SIM118
    entries = 0
    if "generated" in config:
        largest = max([largest, *map(min, matrices)])
        entries = max(map(math.prod, matrices), default=0)
    for name, value, limit in _too_large(config, largest, entries):
        raise ConfigError(
            f"{name}={value} is larger than the tensors of the adapter, whose largest dimension is {limit}"
        )


def check_sizes_fit(config: Any, model: nn.Module) -> None:
    """Raise ConfigError if a rank, or another size of a PEFT config, is above 1024 and larger than all of `model`."""
    shapes = [tuple(p.shape) for p in model.parameters()]
    largest = max((size for shape in shapes for size in shape), default=0)
    for name, value, limit in _too_large(vars(config), largest, sum(map(math.prod, shapes))):
        shown = setting(name) if name.isidentifier() else name
        raise ConfigError(f"{shown}={value} is larger than the model; use at most {max(UNCHECKED, limit)}")


def check_patterns(values: Any, names: Iterable[str]) -> None:
    """Raise ConfigError if a regular expression in `values` takes more than 5 seconds on the module names `names`.

    Python cannot stop a match, so patterns with several quantifiers or alternatives are first tried in a process of
    their own.
    """
    patterns = sorted({text for text in _texts(values) if sum(map(text.count, _CHOICES)) > 1})
    if not patterns or not sys.executable:
        return
    command = [sys.executable, "-I", "-S", "-c", _SCRIPT]
    try:
        subprocess.run(
            command,
            input=json.dumps([patterns, list(names)]),
            text=True,
            timeout=SECONDS,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"a pattern takes more than {SECONDS:g} seconds on the module names of this model, one of "
            f"{', '.join(map(repr, patterns))}; use a simpler regular expression, or a list of names"
        ) from error


def _too_large(config: Mapping[str, Any], largest: int, entries: int) -> Iterator[tuple[str, int, int]]:
    """Name, value and limit of each size above 1024 and above the `largest` dimension, or the number of `entries`."""
    for name, value in _sizes(config):
        limit = max(largest, entries) if name in _COUNTS else largest
        if isinstance(value, int) and value > max(UNCHECKED, limit):
            yield name, value, limit


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name, config[name]) for name in (*_SIZES, *_COUNTS) if name in config)
    pattern, host = config.get("rank_pattern"), config.get("host")
    yield from (
        (f"rank_pattern {name!r}", value) for name, value in (pattern if isinstance(pattern, dict) else {}).items()
    )
    yield from _sizes(host) if isinstance(host, dict) else ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
