"""The tensors of a LoRA that a generator fills, and where LoRA itself would start them."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedLoraConfig, in_saved_order
from qpeft.core.lora_init import draw_initial
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import find_slots, in_vector_order


def lora_slots(
    model: nn.Module, adapter_name: str, config: GeneratedLoraConfig, start: SeededInit
) -> tuple[list[Slot], Tensor]:
    """Every trainable tensor of a LoRA just injected into `model`, and LoRA's own start of them.

    Returns:
        The tensors in the order of the flat vector: as PEFT has them, or as in the checkpoint that `config` came from.
        Their starting values, drawn from `start`: flat (P,), float32, on the CPU.

    Raises:
        CheckpointError: the checkpoint has other tensors than this model.
    """
    found: list[tuple[Slot, Any]] = find_slots(model, adapter_name, LoraLayer)
    if config.generated is None:
        found = in_vector_order(found, getattr(config, "vector_order", "peft"))
    else:
        found = in_saved_order(found, config.generated)
    drawn = [draw_initial(slot, layer, adapter_name, config.init_lora_weights, start) for slot, layer in found]
    return [slot for slot, _ in found], torch.cat([value.flatten().cpu() for value in drawn])
