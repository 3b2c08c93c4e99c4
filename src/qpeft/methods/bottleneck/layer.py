"""A module followed by bottleneck adapters.

y = f(x) + W_up act(W_down f(x) + c_down) + c_up        W_down (b, d), W_up (d, b)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import check_width, is_linear, sizes
from qpeft.errors import UnsupportedTypeError
from qpeft.methods.bottleneck.config import ACTIVATIONS, BottleneckConfig


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module followed by bottleneck adapters; several active ones have the same input and are summed."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_inner",)

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.in_features, self.out_features = sizes(base_layer) if is_linear(base_layer) else (width, width)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_inner = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: BottleneckConfig, label: str) -> None:
        """Add an adapter that initially adds 0; W_down is uniform on +-1/sqrt(d), drawn from the seed by `label`."""
        check_width("bottleneck_size", config.bottleneck_size, self.get_base_layer(), label)
        device, dtype = device_and_dtype(self.get_base_layer())
        down = nn.Linear(self.width, config.bottleneck_size, device=device, dtype=dtype)
        up = nn.Linear(config.bottleneck_size, self.width, device=device, dtype=dtype)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        if not down.weight.is_meta:
            name = f"{label}.bottleneck_down.weight"
            drawn = SeededInit(config.seed).uniform(name, down.weight.shape, 1 / math.sqrt(self.width))
            with torch.no_grad():
                down.weight.copy_(drawn)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_inner[adapter_name] = nn.Sequential(
            ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        names = [name for name in self.active_adapters if name in self.bottleneck_down]
        if self.disable_adapters or not names:
            return output
        x = self._stream(output)  # (..., d)
        adapted = x
        for name in names:
            adapted = adapted + self._branch(x, name)
        return adapted if isinstance(output, Tensor) else (adapted, *output[1:])

    def _branch(self, x: Tensor, name: str) -> Tensor:
        down: Any = self.bottleneck_down[name]
        inner = self.bottleneck_inner[name](down(self._cast_input_dtype(x, down.weight.dtype)))
        return self.bottleneck_up[name](inner).to(x.dtype)

    def _stream(self, output: Any) -> Tensor:
        """The module's output, or the first of several."""
        x = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(x, Tensor) or x.shape[-1:] != (self.width,):
            found = list(x.shape) if isinstance(x, Tensor) else type(output).__name__
            raise UnsupportedTypeError(
                f"a bottleneck adapter of width {self.width} follows {type(self.get_base_layer()).__name__}, which "
                f"gave {found}; choose target_modules whose output is a tensor of the model's width"
            )
        return x


def device_and_dtype(base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype]:
    """Device and dtype of the module's computation; float32 for weights stored as integers."""
    parameters = list(base_layer.parameters())
    floats = [p.dtype for p in parameters if p.is_floating_point()]
    return (parameters[0].device if parameters else None), (floats[0] if floats else torch.float32)
