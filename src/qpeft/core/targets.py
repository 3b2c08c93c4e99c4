"""Checks of `target_modules`: a name that matches no module is an error, not a smaller adapter."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qpeft.core.config_limits import UNCHECKED, check_patterns
from qpeft.errors import ConfigError, UnsupportedTypeError, setting

_PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")


def check_target_modules(model: nn.Module, config: PeftConfig) -> None:
    """Check `target_modules`, `modules_to_save` and the keys of `rank_pattern` and `alpha_pattern`.

    Raises:
        ConfigError: a name matches no module of `model`; the message shows the nearest names.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    check_patterns([getattr(config, field, None) for field in _PATTERNS], names)
    try:
        _check(config, names)
    except re.error as error:
        raise ConfigError(f"'{error.pattern}' is no regular expression: {error.msg}") from error


def exclude_classifier_head(model: nn.Module, config: Any) -> None:
    """Exclude a new head, such as an image classifier's, from all-linear by the config's `exclude_modules`.

    PEFT excludes the output head of language models and `modules_to_save`. A new head has no trained weight that an
    update of low rank could adapt.
    """
    if str(config.target_modules).lower() != "all-linear" or not isinstance(model, PreTrainedModel):
        return
    if model.base_model is model or model.get_output_embeddings() is not None:
        return
    saved, within = set(config.modules_to_save or ()), f"{model.base_model_prefix}."
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not name.startswith(within) and not saved & {*name.split(".")}
    ]
    own = config.exclude_modules or []
    config.exclude_modules = "|".join([own, *map(re.escape, heads)]) if isinstance(own, str) else [*own, *heads] or None


def check_is_matrix(module: nn.Module, name: str) -> None:
    """Raise UnsupportedTypeError unless the module multiplies by one matrix: `nn.Linear` or transformers' `Conv1D`."""
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise UnsupportedTypeError(f"{type(module).__name__} is not supported for {name}")


def check_rank(config: Any, module: nn.Module, name: str) -> None:
    """`check_width` for the rank that `config` gives the module called `name`."""
    pattern = getattr(config, "rank_pattern", None) or {}
    check_width("r", pattern.get(get_pattern_key(list(pattern), name), getattr(config, "r", 0)), module, name)


def check_width(field: str, value: Any, module: nn.Module, name: str) -> None:
    """Raise ConfigError if the adapter's inner width `value` is above 1024 and larger than all widths of the module."""
    shapes = [tuple(p.shape) for p in module.parameters() if p.is_floating_point()]
    largest = max(
        (size for shape in (*shapes, sizes(module) if is_linear(module) else ()) for size in shape), default=0
    )
    if isinstance(value, int) and value > (limit := max(UNCHECKED, largest)):
        raise ConfigError(f"{field}={value} is larger than {name}; use at most {limit}")


def _check(config: PeftConfig, names: list[str]) -> None:
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str):
        if targets not in ("all-linear", DUMMY_TARGET_MODULES) and not any(
            re.fullmatch(targets, name) for name in names
        ):
            raise ConfigError(f"{setting('target_modules')} pattern '{targets}' matches no module; {_available(names)}")
    else:
        _check_names("target_modules", targets or (), names)
    _check_names("modules_to_save", _wanted_to_save(config), names)
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field, None) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise ConfigError(f"{setting(field)} key '{pattern}' matches no module; {_nearest(pattern, names)}")


def _wanted_to_save(config: PeftConfig) -> set[str]:
    """`modules_to_save` without the names that PEFT adds for classifiers, whether or not the model has them."""
    wanted: set[str] = set(getattr(config, "modules_to_save", None) or ())
    return wanted - {"classifier", "score"} if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else wanted


def _check_names(field: str, wanted: Iterable[str], names: list[str]) -> None:
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"{setting(field)} '{target}' matches no module; {_nearest(target, names)}")


def _nearest(wanted: str, names: list[str]) -> str:
    found = difflib.get_close_matches(wanted, sorted(_last_parts(names)), n=3, cutoff=0.5)
    return f"nearest names: {', '.join(found)}" if found else _available(names)


def _available(names: list[str]) -> str:
    return f"this model has: {', '.join(sorted(_last_parts(names)))}"


def _last_parts(names: list[str]) -> set[str]:
    return {part for name in names if not (part := name.rpartition(".")[2]).isdigit()}


def set_target_names(
    model: nn.Module,
    config: Any,
    default: Callable[[nn.Module], list[str] | str],
    modules: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]],
) -> None:
    """Set the config's `target_modules` if they are unset or all-linear, and check them.

    `modules` returns the base model's modules by their names without any adapter of this kind.

    Raises:
        ConfigError: a name matches no module.
    """
    config.target_modules = config.target_modules or default(model)
    if str(config.target_modules).lower() == "all-linear":
        exclude_classifier_head(model, config)
        # like PEFT, without the output head; PEFT's own search skips modules that have an adapter
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        head = getattr(head, "base_layer", head)
        config.target_modules = [name for name, module in modules(model) if is_linear(module) and module is not head]
    check_target_modules(model, config)


def is_linear(module: Any) -> bool:
    """Whether it is a Linear, also of a quantized base, or a Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D)) or (
        isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int)
    )


def sizes(linear: Any) -> tuple[int, int]:
    """Width of the input and of the output of a linear map."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)
