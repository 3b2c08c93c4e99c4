"""QPA: a circuit and a map of its probabilities generate every parameter of a stock LoRA adapter."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraModel

from qpeft.core.binding import Slot
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import lora_slots
from qpeft.core.tuner import GeneratedMixin
from qpeft.methods.qpa.generator import QPAGenerator


class QPAModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QPAConfig."""

    def _build(self, adapter_name: str, config: Any, init: SeededInit) -> tuple[QPAGenerator, list[Slot]]:
        slots, initial = lora_slots(self.model, adapter_name, config, init)
        return QPAGenerator(config, initial, init), slots
