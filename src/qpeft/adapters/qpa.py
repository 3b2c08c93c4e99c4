"""QPA over LoRA: a circuit and a small MLP generate every number of a stock LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from peft.tuners.lora import LoraLayer, LoraModel

from qpeft.adapters import lora_start
from qpeft.adapters.binding import Slot
from qpeft.adapters.generated import GeneratedMixin
from qpeft.adapters.generated_config import GeneratedLoraConfig, MethodName, in_saved_order
from qpeft.adapters.slots import find_slots, in_vector_order
from qpeft.errors import ConfigError
from qpeft.generators.qpa import QPAGenerator
from qpeft.generators.seeded_start import SeededStart
from qpeft.generators.settings import QPAGeneratorConfig

QPA = MethodName("QPEFT_QPA")


@dataclass
class QPAConfig(QPAGeneratorConfig, GeneratedLoraConfig):
    """LoRA's own settings (r, lora_alpha, target_modules, use_dora, rank_pattern, ...) and the generator's.

    Example::

        model = get_peft_model(base, QPAConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that QPA cannot generate.
    """

    def __post_init__(self) -> None:
        GeneratedLoraConfig.__post_init__(self)
        QPAGeneratorConfig.__post_init__(self)
        self.peft_type = QPA  # type: ignore[assignment]
        self.check_format()
        if self.init_lora_weights not in lora_start.DRAWN_INITS:
            allowed = ", ".join(map(repr, lora_start.DRAWN_INITS))
            raise ConfigError(
                f"init_lora_weights='{self.init_lora_weights}' looks at data or weights, so its start cannot be drawn "
                f"again from a seed; choose one of {allowed}, or put QPA over that LoRA with qpeft.attach"
            )
        self.refuse_lora_options("QPA", allowed=("use_dora",))

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published experiment: rank 4, alpha 8, dropout 0.05 on lm_head, and the published generator."""
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["lm_head"]}
        return super().official(**{**lora, **settings})

    def description(self) -> dict[str, Any]:
        return {
            "method": "QPA (arXiv 2410.09846)",
            **{name: getattr(self, name) for name in ("r", "n_layers", "feature_source", "activation", "seed")},
        }


class QPAModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QPAConfig."""

    def _build(self, adapter_name: str, config: Any, start: SeededStart) -> tuple[QPAGenerator, list[Slot]]:
        found = _in_order(find_slots(self.model, adapter_name, LoraLayer), config)
        slots = [slot for slot, _ in found]
        initial = [
            lora_start.draw_start(slot, layer, adapter_name, config.init_lora_weights, start).flatten().cpu()
            for slot, layer in found
        ]
        if config.init_mode == "residual":
            lora_start.check_not_stationary(slots, initial)
        return QPAGenerator(config, torch.cat(initial), start), slots


def _in_order(found: list[tuple[Slot, Any]], config: QPAConfig) -> list[tuple[Slot, Any]]:
    """As the settings say, or as in the checkpoint being loaded."""
    if config.generated is not None:
        return in_saved_order(found, config.generated, "QPA")
    return in_vector_order(found, config.vector_order)
