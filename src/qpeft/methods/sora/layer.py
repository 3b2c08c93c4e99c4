"""The gates of a LoRA layer, and PEFT's computations with them.

y = W0 x + b0 + s B (g * (A D(x)))        A (r, d_in), g (r,), B (d_out, r), s = lora_alpha / r, D dropout
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.nn.functional import linear

from qpeft.core.adapter_form import AdapterForm
from qpeft.core.generator import FullPrecision
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.sora.config import SoRAConfig

GATE = "sora_gate"


class Gates(FullPrecision, nn.ParameterDict):
    """A module's gates by adapter, float32 also in a model of half precision."""

    def __setitem__(self, adapter_name: str, gate: Any) -> None:
        # PEFT's loading with low_cpu_mem_usage casts them to the dtype of the base
        held = self[adapter_name] if adapter_name in self else None  # noqa: SIM401 it has no get for parameters
        if held is not None and gate.dtype.itemsize < held.dtype.itemsize:
            gate = held.to(gate.device)
        super().__setitem__(adapter_name, gate)


class GatedVariant(LoraVariant):
    """The variant that PEFT's LoRA layers use for an adapter with gates."""

    def supports_lora_conversion(self) -> bool:
        return False  # PEFT's conversion ignores gates; qpeft.export is exact

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        inner = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))  # (..., r)
        return result + linear(inner, gated_b(module, active_adapter)) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + gated_update(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        # in place, as PEFT does: within torch.inference_mode a new tensor could not be trained with later
        orig_weight.data += gated_update(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        orig_weight.data -= gated_update(module, active_adapter).to(orig_weight.dtype)
        return orig_weight.data


def gated_b(layer: Any, adapter_name: str) -> Tensor:
    """B diag(g), (d_out, r), in B's dtype: exactly the values of an export."""
    b = layer.lora_B[adapter_name].weight
    return (b * layer.sora_gate[adapter_name]).to(b.dtype)


def gated_update(layer: Any, adapter_name: str) -> Tensor:
    """s B diag(g) A in float32, in the layout of the base weight: (d_out, d_in), for Conv1D (d_in, d_out)."""
    a, b = layer.lora_A[adapter_name].weight, gated_b(layer, adapter_name)
    update = b.float() @ a.float() * layer.scaling[adapter_name]
    return update.T if getattr(layer, "fan_in_fan_out", False) else update


def add_gate(layer: Any, adapter_name: str, config: SoRAConfig, site: str) -> None:
    """Add gates to a new adapter, and initialize it from the seed: A uniform on +-1/sqrt(d_in), g normal or 1."""
    if not hasattr(layer, GATE):
        layer.sora_gate = Gates()
        layer.adapter_layer_names = (*layer.adapter_layer_names, GATE)
    a: nn.Parameter = layer.lora_A[adapter_name].weight  # (r, d_in)
    gate = torch.ones(a.shape[0], device=a.device)
    if not a.is_meta:
        init = SeededInit(config.seed)
        with torch.no_grad():
            a.copy_(init.uniform(f"{site}.lora_A.weight", a.shape, 1 / math.sqrt(a.shape[1])))
            if config.gate_init == "normal":
                gate.copy_(init.normal(f"{site}.{GATE}", gate.shape))
    layer.sora_gate[adapter_name] = nn.Parameter(gate, requires_grad=a.requires_grad)
    layer.lora_variant[adapter_name] = GatedVariant()


class GatedTuner(AdapterForm):
    """The gates of a SoRA tuner."""

    shrinks = False  # whether a threshold is attached to an optimizer, see `threshold.attach`
    model: nn.Module

    def gates(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Site, adapter and gates (r,) float32 of each adapted module."""
        for site, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                for adapter_name, gate in layer.sora_gate.items():  # type: ignore[union-attr]
                    yield site, adapter_name, gate


def sora_tuner(model: Any) -> Any:
    """The SoRA tuner in a model, which a trainer may have wrapped; None without one."""
    return next((module for module in model.modules() if isinstance(module, GatedTuner)), None)
