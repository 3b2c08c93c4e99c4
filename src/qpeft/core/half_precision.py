"""What rounding to half precision hides from a comparison, or takes from a merged adapter: outputs of
single layers in float32.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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


class _Measured(NamedTuple):
    """An adapted linear map whose adapter adds something, and its outputs (64, outputs)."""

    name: str
    layer: Any
    inputs: Tensor  # (64, width)
    plain: Tensor  # without the adapter
    exact: Tensor  # with it

    def lost(self, merged: Any) -> float:
        """The share of what the adapter adds that is wrong in the `merged` map, such as 0.01."""
        output = output_in_float32(merged, self.inputs)
        return ((output - self.exact).norm() / (self.exact - self.plain).norm()).item()


def _first_that_adds(model: nn.Module) -> _Measured | None:
    """The first layer of half precision that is not merged and whose adapter adds something."""
    for name, layer in half_layers(model).items():
        if layer.merged:
            continue
        modes = [(module, module.training) for module in layer.modules()]
        layer.eval()  # without dropout
        try:
            inputs = inputs_of(layer)
            plain = output_in_float32(layer.base_layer, inputs)
            exact = output_in_float32(layer, inputs)
        finally:
            for module, is_training in modes:
                module.training = is_training
        if not torch.equal(exact, plain):
            return _Measured(name, layer, inputs, plain, exact)
    return None


def lost_by_merging(model: nn.Module) -> float | None:
    """The share of what a stock adapter adds to the output of a layer that merging into `model`
    would round away; None if no layer is of half precision.
    """
    measured = _first_that_adds(model)
    if measured is None:
        return None
    twin = copy.deepcopy(measured.layer)
    twin.merge()
    return measured.lost(twin.base_layer)


@contextmanager
def measured_merge(model: nn.Module) -> Iterator[None]:
    """Within: PEFT merges the adapters of `model` into its weights, or undoes it.

    Warns with QpeftWarning, with the error of one layer, if weights of half precision have rounded
    what the adapter adds.
    """
    measured = _first_that_adds(model)
    yield
    if measured is None or not measured.layer.merged:
        return
    base_layer = measured.layer.base_layer
    share = measured.lost(base_layer)
    if share > 0:
        text = (
            f"merging into weights of half precision ({base_layer.weight.dtype}) loses small"
            f" changes: in {measured.name} the rounding is {share:.2%} of what the adapter adds to"
            " the output; load the base model in float32 to merge"
        )
        warnings.warn(QpeftWarning(text), stacklevel=2)
