"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al. as a PEFT tuner;
stock PEFT has none.

The output of each target module f becomes, with a bottleneck of width b:

    y = f(x) + W_up gelu(W_down f(x) + c_down) + c_up        W_down (b, d), W_up (d, b)

W_up and both biases are initialized to zero, so the model does not change initially. QPA's paper
mentions a "feed-forward adapter" without details; this is our interpretation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpeft.core.config import OwnTunerConfig
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import is_linear, last_parts, sizes
from qpeft.errors import ConfigError
from qpeft.methods.bottleneck import BottleneckSettings

# names of feed-forward blocks: GPT-2, Llama, ViT, ...; T5; BERT; BART, OPT; DistilBERT
_FEED_FORWARD = ("mlp", "DenseReluDense", r".*\.layer\.\d+\.output\.dense", "fc2", "ffn")


@dataclass
class BottleneckConfig(BottleneckSettings, OwnTunerConfig):
    """The feed-forward adapter of modules, by default of the feed-forward block of each layer.

    It has 2 d b + b + d parameters for each target module of width d.

    Behind each module f::

        y = f(x) + W_up gelu(W_down f(x) + c_down) + c_up

    Not to merge or to export: it is not linear, so the model keeps it at inference.

    Example::

        model = get_peft_model(base, BottleneckConfig(bottleneck_size=16, target_modules=["mlp"]))

    Raises:
        ConfigError: a setting is out of range; on the model, the width of a target is unknown, or
            one target lies within another.
    """

    method_name = "QPEFT_BOTTLENECK"


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module followed by bottleneck adapters; several active ones have the same input and are
    summed.
    """

    adapter_layer_names = ("bottleneck_adapter",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_adapter = nn.ModuleDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        names = [name for name in self.active_adapters if name in self.bottleneck_adapter]
        if self.disable_adapters or not names:
            return output
        x: Any = output[0] if isinstance(output, tuple) and output else output  # (..., d)
        adapted = x
        for name in names:
            adapter: Any = self.bottleneck_adapter[name]
            change = adapter(self._cast_input_dtype(x, adapter[0].weight.dtype))
            adapted = adapted + change.to(x.dtype)
        return adapted if isinstance(output, Tensor) else (adapted, *output[1:])

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT knows the device of a linear map, not of a block
        first = next(self.get_base_layer().parameters(), None)
        if device is None and first is not None:
            device = first.device
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)


class BottleneckModel(OwnTuner):
    """The tuner that PEFT builds for a BottleneckConfig."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _default_targets(self, modules: dict[str, nn.Module]) -> list[str]:
        for target in _FEED_FORWARD:
            if any(name.endswith(f".{target}") for name in modules):
                return [target]
            matching = [name for name in modules if re.fullmatch(target, name)]
            if matching:
                return matching
        raise ConfigError(
            "no feed-forward block of a known name; set target_modules to some of"
            f" {', '.join(last_parts(modules))}"
        )

    def _check_target(self, config: Any, name: str, module: nn.Module) -> None:
        _find_width(module, name)
        layers = {path for path, m in self.model.named_modules() if isinstance(m, BottleneckLayer)}
        parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
        for parent in parents:
            if parent in layers or check_target_module_exists(config, parent):
                raise ConfigError(
                    f"target_modules match {parent} and {name} within it; give a longer name"
                )

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        # initially it adds 0; W_down is uniform on +-1/sqrt(d)
        base = layer.get_base_layer()
        width = _find_width(base, name)
        layer.in_features, layer.out_features = sizes(base) if is_linear(base) else (width, width)
        parameters = list(base.parameters())
        device = parameters[0].device if parameters else None
        # a quantized base has parameters of other types as well
        dtypes = [p.dtype for p in parameters if p.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.float32
        down = nn.Linear(width, config.bottleneck_size, device=device, dtype=dtype)
        up = nn.Linear(config.bottleneck_size, width, device=device, dtype=dtype)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        init = SeededInit(config.seed, down.weight.device.type)
        drawn = init.uniform(
            f"{name}.bottleneck_down.weight", down.weight.shape, 1 / math.sqrt(width)
        )
        with torch.no_grad():
            down.weight.copy_(drawn)
        layer.bottleneck_adapter[adapter_name] = nn.Sequential(down, nn.GELU(), up)


def _find_width(module: nn.Module, name: str) -> int:
    """d, the size of the last axis of the module's output; raises ConfigError if it is unknown.

    The output of a block has the width of its input, which is the input width of its first linear
    map and the output width of its last. That of a normalization has the width of its gain.
    """
    if is_linear(module):
        return sizes(module)[1]
    linears = [sizes(m) for m in module.modules() if is_linear(m)]
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    if not linears and len(shapes) == 1:
        gain = shapes.pop()
        if len(gain) == 1:
            return gain[0]
    # a list or a model has children, and no tensor as output
    is_block = not isinstance(module, (nn.ModuleList, nn.ModuleDict, PreTrainedModel))
    if linears and is_block and linears[0][0] == linears[-1][1]:
        return linears[0][0]
    raise ConfigError(
        f"the output width of {name} ({type(module).__name__}) is unknown; a bottleneck adapter"
        " follows a Linear, a Conv1D, a normalization, or a block such as mlp whose output is one"
        " tensor of the model's width"
    )
