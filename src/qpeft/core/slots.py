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
from qpeft.errors import ConfigError

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
    placed: Tensor | None = None  # by `put`

    @classmethod
    def of(cls, owner: nn.Module, name: str, label: str) -> Slot:
        """For a parameter of `owner`."""
        parameter: Any = owner._parameters[name]
        return cls(owner, name, label, parameter.shape, parameter.dtype)

    def put(self, tensor: Tensor) -> None:
        """Set the tensor, of the slot's shape and dtype, as a plain attribute, invisible to
        `nn.Module`, instead of the stock parameter.

        Raises ConfigError if somebody has set another parameter or tensor there.
        """
        parameter = self.owner._parameters.pop(self.name, None)
        present = self.owner.__dict__.get(self.name)
        before = self.placed
        self.owner.__dict__[self.name] = self.placed = tensor
        is_changed = before is not None and present is not None and present is not before
        if parameter is not None or is_changed:
            refuse_write()


def refuse_write() -> None:
    """Raise ConfigError: what is written into a generated tensor is lost at the next evaluation."""
    raise ConfigError(
        "something wrote into a tensor of the adapter that its generator computes, such as"
        " lora_B.weight, and the next step would discard that; write into the parameters of"
        " model.base_model.generators, or export the adapter and change the exported one"
    )


def refuse_hook(*_: Any, **__: Any) -> Any:
    """Raise ConfigError: the next forward pass makes another tensor, without the hook."""
    raise ConfigError(
        "a hook of a tensor that the adapter's generator computes, such as lora_B.weight, would run"
        " until the next forward pass alone; register it with the parameters of"
        " model.base_model.generators"
    )


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
            path = f"{module_name}.{container_name}".lstrip(".")
            for slot in slots_in(container, adapter_name, path):
                parameter = slot.owner._parameters[slot.name]
                slots.setdefault(id(parameter), (slot, layer))
    return list(slots.values())


def slots_in(container: Any, adapter_name: str, path: str) -> list[Slot]:
    """A slot for each of the adapter's parameters in `container`; the labels begin with `path`."""
    if isinstance(container, nn.ParameterDict):
        is_there = container._parameters.get(adapter_name) is not None
        return [Slot.of(container, adapter_name, path)] if is_there else []
    if not isinstance(container, nn.ModuleDict) or adapter_name not in container:
        return []
    slots = []
    for inner, module in container[adapter_name].named_modules():
        for name, _ in module.named_parameters(recurse=False):
            label = ".".join(filter(None, (path, inner, name)))
            slots.append(Slot.of(module, name, label))
    return slots


def draw_initial(slots: Sequence[Slot], init_lora_weights: bool | str, init: SeededInit) -> Tensor:
    """w0 of all slots, flat (P,), float32, on the CPU, with the distribution of PEFT's
    initialization.

    lora_A is uniform on +-1/sqrt(fan_in) (or normal with deviation 1/r), lora_B and biases are 0;
    for embeddings A is 0 and B normal. With "zero" all of them are 0. What the base determines is
    that of the slot, or 0 if it is unknown.
    """
    values = []
    for slot in slots:
        drawn = slot.initial
        if drawn is None:
            drawn = _drawn(slot, init_lora_weights, init)
        values.append(drawn.flatten())
    return torch.cat(values)


def _drawn(slot: Slot, init_lora_weights: bool | str, init: SeededInit) -> Tensor:
    """The initial value of one tensor."""
    part = slot.label.rpartition(".lora_")[2]  # "A.weight", "B.bias", "embedding_A", ...
    is_zero = init_lora_weights == "zero"
    is_normal = part == "embedding_B" or (part == "embedding_A" and init_lora_weights is False)
    if is_normal and not is_zero:
        return init.normal(slot.label, slot.shape)
    is_random = part == "A.weight" or (part == "B.weight" and init_lora_weights is False)
    if is_zero or not is_random:
        return torch.zeros(slot.shape)
    if init_lora_weights == "gaussian":
        return init.normal(slot.label, slot.shape, std=1.0 / slot.shape[0])
    fan_in = math.prod(slot.shape[1:])
    return init.uniform(slot.label, slot.shape, 1.0 / math.sqrt(fan_in))


def _magnitude(slot: Slot, layer: Any, adapter_name: str) -> Tensor:
    """The initial value of DoRA's magnitude: the norm of the base weight, on the CPU."""
    weight = dequantize_module_weight(layer.get_base_layer())
    dora = layer.lora_magnitude_vector[adapter_name]
    no_update = torch.zeros((), dtype=weight.dtype, device=weight.device)
    norm = dora.get_weight_norm(weight, no_update, 1.0)
    return norm.detach().float().reshape(slot.shape).cpu()
