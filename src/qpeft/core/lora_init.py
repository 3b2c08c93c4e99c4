"""LoRA's own initial values (w0), drawn from a seed instead of torch's random stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from qpeft.core.binding import Slot
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError

DRAWN_INITS = (True, False, "gaussian")


def draw_initial(slot: Slot, layer: Any, adapter_name: str, init_lora_weights: bool | str, init: SeededInit) -> Tensor:
    """w0 of one slot, shape `slot.shape`, float32, with the distribution of PEFT's initialization.

    lora_A is uniform on +-1/sqrt(fan_in) (or normal with deviation 1/r), lora_B and biases are 0; for embeddings A is 0
    and B normal. With "zero" all of them are 0. DoRA's magnitude is the norm of the base weight.
    """
    part = slot.label.rsplit(".lora_", 1)[-1]  # "A.weight", "B.weight", "B.bias", "embedding_A", ...
    if part.startswith("magnitude_vector"):
        return _magnitude(layer, adapter_name, slot)
    if init_lora_weights == "zero":
        return torch.zeros(slot.shape)
    if part == "embedding_B":
        return init.normal(slot.label, slot.shape)
    random = part == "A.weight" or (part == "B.weight" and init_lora_weights is False)
    if not random:
        return torch.zeros(slot.shape)
    if init_lora_weights == "gaussian":
        return init.normal(slot.label, slot.shape, std=1.0 / slot.shape[0])
    return init.uniform(slot.label, slot.shape, 1.0 / math.sqrt(math.prod(slot.shape[1:])))


def draw_without_base(
    slots: Sequence[Slot], init_lora_weights: bool | str, init: SeededInit, magnitudes: Mapping[str, Tensor]
) -> Tensor:
    """w0 of all slots, flat (P,), without a base model, whose weights determine DoRA's `magnitudes` (by label)."""
    parts = [
        magnitudes[slot.label] if slot.label in magnitudes else draw_initial(slot, None, "", init_lora_weights, init)
        for slot in slots
    ]
    return torch.cat([part.flatten() for part in parts])


def check_not_stationary(slots: Sequence[Slot], initial: Sequence[Tensor]) -> None:
    """Raise ConfigError if some lora_A and lora_B are both zero, so that both gradients would remain zero."""
    zero: dict[str, list[bool]] = {}
    for slot, value in zip(slots, initial, strict=True):
        module, _, part = slot.label.rpartition(".lora_")
        if part in ("A.weight", "B.weight", "embedding_A", "embedding_B"):
            zero.setdefault(module, []).append(not value.any())
    for module, flags in zero.items():
        if all(flags):
            raise ConfigError(f"adapter starts at a stationary point: lora_A and lora_B of {module} are both zero")


def _magnitude(layer: Any, adapter_name: str, slot: Slot) -> Tensor:
    weight = dequantize_module_weight(layer.get_base_layer())
    if weight.is_meta:
        raise CheckpointError(
            f"{slot.label} is initialized to the norm of the base weight, which is on the meta device; "
            "load the base model's weights first"
        )
    dora = layer.lora_magnitude_vector[adapter_name]
    norm = dora.get_weight_norm(weight, torch.zeros((), dtype=weight.dtype, device=weight.device), 1.0)
    return norm.detach().float().reshape(slot.shape)
