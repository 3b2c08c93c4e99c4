"""What rounding to half precision hides from a comparison, or takes from a merged adapter: outputs of
single layers in float32.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.targets import is_linear, sizes
from qpeft.errors import QpeftWarning

_HALF = (torch.float16, torch.bfloat16)
_N_INPUTS = 64


def half_layers(model: nn.Module) -> dict[str, Any]:
    """The adapted linear maps with weights of half precision, by name."""
    layers: dict[str, Any] = {}
    for name, layer in model.named_modules():
        base = getattr(layer, "base_layer", None)  # of experts another layer with an adapter
        if isinstance(layer, BaseTunerLayer) and is_linear(base):
            weight = getattr(base, "weight", None)
            if weight is not None and weight.dtype in _HALF:
                layers[name] = layer
    return layers


def inputs_of(layer: Any) -> Tensor:
    """Inputs of an adapted linear map, (64, width), float32, always the same."""
    width, _ = sizes(layer.base_layer)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_N_INPUTS, width, generator=generator).to(layer.base_layer.weight.device)


@torch.no_grad()
def output_in_float32(layer: Any, inputs: Tensor) -> Tensor:
    """What a linear map, or one with its active adapters, computes in float32, (64, outputs)."""
    if not isinstance(layer, BaseTunerLayer):
        return copy.deepcopy(layer).float()(inputs)
    twin: Any = copy.copy(layer)  # it shares the adapters, and the layer itself is not changed
    twin._modules = {**twin._modules, "base_layer": copy.deepcopy(twin.base_layer).float()}
    return twin(inputs)


@contextmanager
def measured_merge(model: nn.Module) -> Iterator[None]:
    """Within: PEFT merges the adapters of `model` into its weights, or undoes it.

    Warns with QpeftWarning, with the error of one layer, if weights of half precision have rounded
    what the adapter adds.
    """
    for name, layer in half_layers(model).items():  # noqa: B007  # the name is in the warning
        if layer.merged:
            continue
        was_training = layer.training
        layer.eval()  # without dropout
        inputs = inputs_of(layer)
        plain = output_in_float32(layer.base_layer, inputs)
        exact = output_in_float32(layer, inputs)
        layer.train(was_training)
        if not torch.equal(exact, plain):  # this layer's adapter adds something
            break
    else:
        yield
        return
    yield
    if not layer.merged:
        return
    merged = output_in_float32(layer.base_layer, inputs)
    share = ((merged - exact).norm() / (exact - plain).norm()).item()
    if share > 0:
        text = (
            f"merging into weights of half precision ({layer.base_layer.weight.dtype}) loses small"
            f" changes: in {name} the rounding is {share:.2%} of what the adapter adds to the"
            " output; load the base model in float32 to merge"
        )
        warnings.warn(QpeftWarning(text), stacklevel=2)
