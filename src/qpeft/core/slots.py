"""The tensors of a stock adapter that a generator fills, and LoRA's own initial values (w0), drawn
from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from qpeft.core.seeded_init import SeededInit

DRAWN_INITS = (True, False, "gaussian")


@dataclass
class Slot:
    """One adapter tensor that a generator fills: attribute `name` of module `owner`."""

    owner: nn.Module
    name: str
    label: str  # the tensor's name within the base model, without the adapter's
    shape: torch.Size
    dtype: torch.dtype
    # the initial value that the base determines, on the CPU; None: drawn from the seed
    initial: Tensor | None = None

    def put(self, tensor: Tensor) -> None:
        """Set the tensor as a plain attribute, invisible to `nn.Module`, instead of the stock
        parameter.
        """
        self.owner._parameters.pop(self.name, None)
        self.owner.__dict__[self.name] = tensor


def lora_slots(model: nn.Module, adapter_name: str) -> list[Slot]:
    """The trainable tensors of a LoRA that was just injected into `model`, in PEFT's order."""
    slots = find_slots(model, adapter_name, LoraLayer)
    for slot, layer in slots:
        slot.dtype = torch.float32  # as PEFT gives to trained adapters
        if ".lora_magnitude_vector" in slot.label:
            slot.initial = _magnitude(slot, layer, adapter_name)
    return [slot for slot, _ in slots]


def find_slots(
    model: nn.Module, adapter_name: str, layer_class: type[BaseTunerLayer]
) -> list[tuple[Slot, Any]]:
    """The adapter's tensors in PEFT's order, each once, with its tuner layer."""
    slots: dict[int, tuple[Slot, Any]] = {}  # by the parameter, which several layers may share
    for module_name, layer in model.named_modules():
        for container_name in layer.adapter_layer_names if isinstance(layer, layer_class) else ():
            container = getattr(layer, container_name, None)
            for owner, name, label in adapter_parameters(container, adapter_name):
                parameter: Any = owner._parameters[name]
                full = ".".join(filter(None, (module_name, container_name, label)))
                slot = Slot(owner, name, full, parameter.shape, parameter.dtype)
                slots.setdefault(id(parameter), (slot, layer))
    return list(slots.values())


def adapter_parameters(container: Any, adapter_name: str) -> list[tuple[nn.Module, str, str]]:
    """Owner, attribute and label of each of the adapter's parameters in `container`."""
    is_container = isinstance(container, (nn.ModuleDict, nn.ParameterDict))
    if not is_container or adapter_name not in container:
        return []
    if isinstance(container, nn.ParameterDict):
        is_parameter = container._parameters.get(adapter_name) is not None
        return [(container, adapter_name, "")] if is_parameter else []
    return [
        (module, name, ".".join(filter(None, (path, name))))
        for path, module in container[adapter_name].named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]


def draw_initial(slots: Sequence[Slot], init_lora_weights: bool | str, init: SeededInit) -> Tensor:
    """w0 of all slots, flat (P,), float32, on the CPU, with the distribution of PEFT's
    initialization.

    lora_A is uniform on +-1/sqrt(fan_in) (or normal with deviation 1/r), lora_B and biases are 0;
    for embeddings A is 0 and B normal. With "zero" all of them are 0. What the base determines is
    that of the slot, or 0 if it is unknown.
    """
    drawn = (
        _drawn(slot, init_lora_weights, init) if slot.initial is None else slot.initial
        for slot in slots
    )
    return torch.cat([value.flatten() for value in drawn])


def _drawn(slot: Slot, init_lora_weights: bool | str, init: SeededInit) -> Tensor:
    part = slot.label.rpartition(".lora_")[2]  # "A.weight", "B.bias", "embedding_A", ...
    random = part == "A.weight" or (part == "B.weight" and init_lora_weights is False)
    if init_lora_weights == "zero" or not (random or part == "embedding_B"):
        return torch.zeros(slot.shape)
    if part == "embedding_B":
        return init.normal(slot.label, slot.shape)
    if init_lora_weights == "gaussian":
        return init.normal(slot.label, slot.shape, std=1.0 / slot.shape[0])
    return init.uniform(slot.label, slot.shape, 1.0 / math.sqrt(math.prod(slot.shape[1:])))


def _magnitude(slot: Slot, layer: Any, adapter_name: str) -> Tensor:
    """The initial value of DoRA's magnitude: the norm of the base weight, on the CPU."""
    weight = dequantize_module_weight(layer.get_base_layer())
    dora = layer.lora_magnitude_vector[adapter_name]
    no_update = torch.zeros((), dtype=weight.dtype, device=weight.device)
    norm = dora.get_weight_norm(weight, no_update, 1.0)
    return norm.detach().float().reshape(slot.shape).cpu()
