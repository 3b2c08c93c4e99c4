"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al. as a PEFT tuner; stock PEFT has none.

The output of each target module f becomes, with a bottleneck of width b:

    y = f(x) + W_up act(W_down f(x) + c_down) + c_up        W_down (b, d), W_up (d, b)

W_up and both biases are initialized to zero, so the model does not change initially. QPA's paper mentions a
"feed-forward adapter" without details; this is our interpretation.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qpeft.core.own_tuner import OwnTuner
from qpeft.errors import ConfigError
from qpeft.methods.bottleneck.layer import BottleneckLayer
from qpeft.methods.bottleneck.targets import find_width, set_targets


class BottleneckModel(OwnTuner):
    """The tuner that PEFT builds for a BottleneckConfig."""

    prefix = "bottleneck_"
    own_kind = "a bottleneck adapter"
    tuner_layer_cls = BottleneckLayer

    def _set_targets(self, model: nn.Module, config: Any) -> None:
        set_targets(model, config, BottleneckLayer)

    def _new_layer(self, target: nn.Module, name: str) -> nn.Module:
        return BottleneckLayer(target, find_width(self.model, target, name))

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        layer.update_layer(adapter_name, config, name)

    def _check_merge_allowed(self) -> None:
        raise ConfigError(
            "a bottleneck adapter is not linear, so it cannot be merged into the weights; keep it as a separate "
            "adapter, or remove it with model.unload()"
        )
