"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al., as a PEFT tuner: stock PEFT has none.

After each target module f, for a bottleneck of b numbers:

    y = f(x) + W_up act(W_down f(x) + c_down) + c_up        W_down (b, d), W_up (d, b)

W_up and both biases start at zero, so the model starts as it was. QPA's paper names a "feed-forward adapter" without
details: this is our reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.checks import is_count
from qpeft.core import model_card
from qpeft.core.config import MethodName
from qpeft.core.generator_state import check_adapter
from qpeft.core.layer_tuner import OwnTuner
from qpeft.core.seeded_init import SeededStart
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import ConfigError, UnsupportedTypeError
from qpeft.methods.bottleneck.targets import find_width, settle_targets

BOTTLENECK = MethodName("QPEFT_BOTTLENECK")
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass
class BottleneckConfig(SealedConfig):
    """Settings of the feed-forward adapter; 2 d b + b + d numbers for each target module of width d.

    Example::

        model = get_peft_model(base, BottleneckConfig(bottleneck_size=16, target_modules=["mlp"]))

    Raises:
        ConfigError: a setting is out of range.
    """

    bottleneck_size: int = field(default=64, metadata={"help": "Inner width b of the adapter."})
    target_modules: Collection[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules after which an adapter is put: ends of names, a pattern of whole names, or all-linear. "
            "Default: the feed-forward block of each layer."
        },
    )
    exclude_modules: Collection[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out of target_modules."}
    )
    activation: str = field(
        default="gelu", metadata={"help": "Between the two projections.", "choices": tuple(ACTIVATIONS)}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout after the activation, in training."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train whole, beside the adapter."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the adapter's start."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK  # type: ignore[assignment]
        if not is_count(self.bottleneck_size):
            raise ConfigError(f"bottleneck_size must be a whole number from 1, got {self.bottleneck_size!r}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed must be a whole number from 0, got {self.seed!r}")
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("target_modules is empty; name modules such as mlp, or leave it unset")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        model_card.write_bottleneck_card(Path(save_directory))


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module with bottleneck adapters after it; several active ones read the same output and are summed."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_inner",)

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_inner = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: BottleneckConfig, label: str) -> None:
        """Add an adapter that starts at nothing, W_down uniform on +-1/sqrt(d), drawn by `label` from the seed."""
        device, dtype = _place(self.get_base_layer())
        down = nn.Linear(self.width, config.bottleneck_size, device=device, dtype=dtype)
        up = nn.Linear(config.bottleneck_size, self.width, device=device, dtype=dtype)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        if not down.weight.is_meta:
            name = f"{label}.bottleneck_down.weight"
            drawn = SeededStart(config.seed).uniform(name, down.weight.shape, 1 / math.sqrt(self.width))
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


class BottleneckModel(OwnTuner):
    """The tuner that PEFT builds for a BottleneckConfig."""

    prefix = "bottleneck_"
    own_kind = "a bottleneck adapter"
    tuner_layer_cls = BottleneckLayer

    def _settle_targets(self, model: nn.Module, config: Any) -> None:
        settle_targets(model, config, BottleneckLayer)

    def _new_layer(self, target: nn.Module, name: str) -> nn.Module:
        return BottleneckLayer(target, find_width(self.model, target, name))

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        layer.update_layer(adapter_name, config, name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_adapter(cls, model, adapter_name, state)
        return state

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            "a bottleneck adapter is not linear, so it cannot be merged into the weights; keep it beside the base "
            "(qpeft.save), or remove it with model.unload()"
        )


def _place(base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype]:
    """Where the module lives and the dtype it computes in; float32 for weights stored as integers."""
    parameters = list(base_layer.parameters())
    floats = [p.dtype for p in parameters if p.is_floating_point()]
    return (parameters[0].device if parameters else None), (floats[0] if floats else torch.float32)
