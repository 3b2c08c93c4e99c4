"""The modules that a bottleneck adapter can follow, and the width of their output."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedModel

from qpeft.core.targets import is_linear, set_target_names, sizes
from qpeft.errors import ConfigError, UnsupportedTypeError, setting

# names of feed-forward blocks: GPT-2, Llama, ViT, ...; T5; BERT; BART, OPT; DistilBERT
_FEED_FORWARD = ("mlp", "DenseReluDense", r".*\.layer\.\d+\.output\.dense", "fc2", "ffn")
_NO_BLOCKS = (nn.ModuleList, nn.ModuleDict, PreTrainedModel)  # with children, but without a tensor as output


def default_targets(model: nn.Module, by_name: bool = False) -> list[str] | str:
    """`target_modules` for the feed-forward block of each layer; raises ConfigError if no name is known.

    With `by_name` these are names, not a pattern.
    """
    names = list(_base_modules(model))
    for target in _FEED_FORWARD:
        if any(name.endswith(f".{target}") for name in names):
            return [target]
        if matching := [name for name in names if re.fullmatch(target, name)]:
            return matching if by_name else target
    parts = sorted({part for name in names if not (part := name.rpartition(".")[2]).isdigit()})
    raise ConfigError(
        f"no feed-forward block of a known name; name {setting('target_modules')} yourself, of: {', '.join(parts)}"
    )


def set_targets(model: nn.Module, config: Any, layer_class: type[nn.Module]) -> None:
    """Set the config's `target_modules` if they are unset or all-linear, and check them.

    Raises:
        ConfigError: a name matches no module, or a target contains another.
        UnsupportedTypeError: the width of a target's output is unknown.
    """
    default = partial(default_targets, by_name=config.layers_to_transform is not None)
    set_target_names(model, config, default, lambda model: _bases(model).items())
    modules = _base_modules(model)
    chosen = {name for name in modules if check_target_module_exists(config, name)}
    for name in sorted(chosen):
        find_width(model, _bases(model)[name], name)
    _check_not_nested(chosen | {name for name, module in modules.items() if isinstance(module, layer_class)})


def find_width(model: nn.Module, module: nn.Module, name: str) -> int:
    """d, the size of the last axis of the module's output; raises UnsupportedTypeError if it is unknown.

    The output of a block has the width of its input, which is the input width of its first linear map and the output
    width of its last; if these differ (a router of experts), the config's `hidden_size`. That of a normalization has
    the width of its gain.
    """
    if is_linear(module):
        return sizes(module)[1]
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    if not any(True for _ in module.children()) and len(shapes) == 1 and len(gain := shapes.pop()) == 1:
        return gain[0]
    linears = [sizes(m) for m in module.modules() if is_linear(m)]
    is_block = any(True for _ in module.children()) and not isinstance(module, _NO_BLOCKS)
    if is_block and linears and linears[0][0] == linears[-1][1]:
        return linears[0][0]
    hidden = _hidden_size(model)
    if hidden is None or not is_block:
        raise UnsupportedTypeError(
            f"the output width of {name} ({type(module).__name__}) is unknown; a bottleneck adapter follows a Linear, "
            "a Conv1D, a normalization, or a block such as mlp whose output is one tensor of the model's width"
        )
    return hidden


def _hidden_size(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "hidden_size", None)


def _bases(model: nn.Module) -> dict[str, nn.Module]:
    """The modules without the adapter's layers."""
    return {name: getattr(module, "base_layer", module) for name, module in _base_modules(model).items()}


def _base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by their names without bottleneck adapters; an adapted one is its tuner layer."""
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and ".bottleneck_" not in name:
            modules.setdefault(name.replace(".base_layer", ""), module)
    return modules


def _check_not_nested(names: set[str]) -> None:
    for name in sorted(names):
        for outer in sorted(names):
            if name.startswith(f"{outer}."):
                raise ConfigError(
                    f"{setting('target_modules')} match {outer} and {name} within it; an adapter can follow one of "
                    "them: give a longer name"
                )
