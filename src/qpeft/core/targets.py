"""Targets of an adapter: a name that matches nothing is an error, not a smaller adapter."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qpeft.core.config_limits import UNCHECKED, check_patterns
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import ConfigError, UnsupportedTypeError, setting

_PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")
_CONVERTED = ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern")
_READ = (*_CONVERTED, "exclude_modules", "modules_to_save", "r", "lora_alpha", "task_type")


def check_target_modules(model: nn.Module, config: PeftConfig) -> None:
    """Check `target_modules`, `modules_to_save` and the keys of `rank_pattern` and `alpha_pattern`.

    Before that, the targets of a LoRA or of qpeft's methods become what PEFT makes of LoRA's: its default for the
    type of model if there are none, and `target_parameters` instead of the names of experts, whose weights
    transformers keeps in one parameter for all experts.

    Raises:
        ConfigError: a name matches nothing in `model`; the message shows the nearest names.
        UnsupportedTypeError: the targets contain experts, and the method adapts modules alone.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name.replace(".base_layer", "") for name, _ in model.named_parameters(remove_duplicate=False)]
    check_patterns([getattr(config, field, None) for field in _PATTERNS], [*names, *parameters])
    try:
        _convert_targets(model, config)
        _check(config, names, parameters)
    except re.error as error:
        raise ConfigError(f"'{error.pattern}' is no regular expression: {error.msg}") from error


def _convert_targets(model: nn.Module, config: Any) -> None:
    is_own = isinstance(config, SealedConfig)
    if not is_own and config.peft_type != PeftType.LORA:
        return  # PEFT converts LoRA's targets alone
    if is_own and isinstance(config, LoraConfig) and config.target_modules is None and not config.target_parameters:
        config.target_modules = _default_targets(model)
    given = {name: copy.copy(value) for name in _READ if (value := getattr(config, name, None)) is not None}
    try:
        convert_peft_config_for_transformers(stock := LoraConfig(**given), model, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    experts = sorted(stock.target_parameters or ())
    if not experts or experts == sorted(getattr(config, "target_parameters", None) or ()):
        return
    if is_own and not getattr(config, "adapts_parameters", False):
        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
        attention = [name for name in linear if name in (stock.target_modules or ())] or linear
        raise UnsupportedTypeError(
            f"{setting('target_modules')} contain experts or their router, whose weights are the parameters "
            f"{', '.join(experts)} instead of modules, and {type(config).__name__} adapts modules alone; give "
            f"{setting('target_modules')} without them, such as {', '.join(attention)}, or use LoRA or QPA"
        )
    stock.target_parameters = experts  # in order: it is saved
    for name in _CONVERTED:
        setattr(config, name, getattr(stock, name))


def _default_targets(model: nn.Module) -> Any:
    """LoRA's `target_modules` for this type of model, as in PEFT. Raises ConfigError if there are none."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    found = known.get(getattr(getattr(model, "config", None), "model_type", ""))
    if found is None:
        names = [name for name, module in model.named_modules() if is_linear(module)]
        raise ConfigError(
            f"set {setting('target_modules')}, such as all-linear, or names of modules; {_available(names)}"
        )
    return found if isinstance(found, str) else set(found)


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


def _check(config: PeftConfig, names: list[str], parameters: list[str]) -> None:
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str):
        if targets not in ("all-linear", DUMMY_TARGET_MODULES) and not any(
            re.fullmatch(targets, name) for name in names
        ):
            raise ConfigError(f"{setting('target_modules')} pattern '{targets}' matches no module; {_available(names)}")
    else:
        _check_names("target_modules", targets or (), names)
    _check_names("target_parameters", getattr(config, "target_parameters", None) or (), parameters, "parameter")
    _check_names("modules_to_save", _wanted_to_save(config), names)
    if getattr(config, "target_parameters", None):
        names = [*names, *parameters]
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field, None) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise ConfigError(f"{setting(field)} key '{pattern}' matches no module; {_nearest(pattern, names)}")


def _wanted_to_save(config: PeftConfig) -> set[str]:
    """`modules_to_save` without the names that PEFT adds for classifiers, whether or not the model has them."""
    wanted: set[str] = set(getattr(config, "modules_to_save", None) or ())
    return wanted - {"classifier", "score"} if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else wanted


def _check_names(field: str, wanted: Iterable[str], names: list[str], kind: str = "module") -> None:
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"{setting(field)} '{target}' matches no {kind}; {_nearest(target, names)}")


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
    _convert_targets(model, config)
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
