"""Find the tensors of a stock adapter that a generator fills."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedLoraConfig, in_saved_order
from qpeft.core.lora_init import draw_initial
from qpeft.core.seeded_init import SeededInit


def lora_slots(
    model: nn.Module, adapter_name: str, config: GeneratedLoraConfig, init: SeededInit
) -> tuple[list[Slot], Tensor]:
    """The trainable tensors of a LoRA that was just injected into `model`, and LoRA's initial values.

    Returns:
        The tensors in the order of the flat vector: PEFT's, or that of the checkpoint that `config` was loaded from.
        Their initial values, drawn from `init`: flat (P,), float32, on the CPU.

    Raises:
        CheckpointError: the checkpoint has other tensors than this model.
    """
    found: list[tuple[Slot, Any]] = find_slots(model, adapter_name, LoraLayer)
    if config.generated is None:
        found = in_vector_order(found, getattr(config, "vector_order", "peft"))
    else:
        found = in_saved_order(found, config.generated)
    drawn = [draw_initial(slot, layer, adapter_name, config.drawn_init, init) for slot, layer in found]
    return [slot for slot, _ in found], torch.cat([value.flatten().cpu() for value in drawn])


def find_slots(model: nn.Module, adapter_name: str, layer_class: type[BaseTunerLayer]) -> list[tuple[Slot, Any]]:
    """The adapter's tensors in PEFT's order, each once, with its tuner layer."""
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
                found.append((Slot(owner, name, full, parameter.shape, _dtype(parameter, layer)), layer))
    return found


def _dtype(parameter: nn.Parameter, layer: BaseTunerLayer) -> torch.dtype:
    """The parameter's, or on the meta device, where PEFT leaves float32, that which PEFT gives it in memory."""
    weight = next((p for p in layer.get_base_layer().parameters() if p.is_floating_point()), parameter)
    return weight.dtype if parameter.is_meta else parameter.dtype


def _parameters(container: Any, adapter_name: str) -> list[tuple[nn.Module, str, str]]:
    """Owner, attribute and label of each of the adapter's parameters in `container`."""
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
    """The device of the adapter; the CPU instead of the meta device, because a generator always has values."""
    parameter = slots[0].owner._parameters[slots[0].name]
    assert parameter is not None
    return torch.device("cpu") if parameter.is_meta else parameter.device
