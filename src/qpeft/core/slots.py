"""Find the tensors of a stock adapter: what a generator will fill."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from qpeft.core.binding import Slot


def find_slots(model: nn.Module, adapter_name: str, layer_class: type[BaseTunerLayer]) -> list[tuple[Slot, Any]]:
    """The adapter's tensors in PEFT's order, each once, with the tuner layer that holds it."""
    found: list[tuple[Slot, Any]] = []
    seen: set[int] = set()
    for module_name, layer in model.named_modules():
        if not isinstance(layer, layer_class):
            continue
        for container_name in layer.adapter_layer_names:
            for owner, name, label in _parameters(getattr(layer, container_name, None), adapter_name):
                parameter = owner._parameters[name]
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                full = ".".join(filter(None, (module_name, container_name, label)))
                found.append((Slot(owner, name, full, parameter.shape, parameter.dtype), layer))
    return found


def _parameters(container: Any, adapter_name: str) -> list[tuple[nn.Module, str, str]]:
    """Owner, attribute and label of each parameter that `container` holds for the adapter."""
    if not isinstance(container, (nn.ModuleDict, nn.ParameterDict)) or adapter_name not in container:
        return []
    if isinstance(container, nn.ParameterDict):
        return [(container, adapter_name, "")]
    return [
        (module, name, ".".join(filter(None, (path, name))))
        for path, module in container[adapter_name].named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]


def in_vector_order(found: list[tuple[Slot, Any]], order: str) -> list[tuple[Slot, Any]]:
    """PEFT's order, or "official", the published one: of every layer, lora_B before lora_A."""
    if order == "peft":
        return found
    layers = {id(layer): i for i, (_, layer) in enumerate(reversed(found))}
    return sorted(found, key=lambda pair: (-layers[id(pair[1])], ".lora_B" not in pair[0].label))


def device_of(slots: list[Slot]) -> torch.device:
    """Where the adapter lives; the CPU if that is the meta device: a generator always has real numbers."""
    parameter = slots[0].owner._parameters[slots[0].name]
    assert parameter is not None
    return torch.device("cpu") if parameter.is_meta else parameter.device
