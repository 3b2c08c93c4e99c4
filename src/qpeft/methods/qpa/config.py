"""The PEFT config of QPA over LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedLoraConfig, MethodName
from qpeft.core.lora_init import DRAWN_INITS, draw_without_base
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError
from qpeft.methods.qpa.generator import QPAGenerator, QPAGeneratorConfig

QPA = MethodName("QPEFT_QPA")


@dataclass
class QPAConfig(QPAGeneratorConfig, GeneratedLoraConfig):
    """LoRA's own fields (r, lora_alpha, target_modules, use_dora, rank_pattern, ...) and the generator's.

    Example::

        model = get_peft_model(base, QPAConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a field is out of range, or a LoRA option that QPA cannot generate.
    """

    _linear_init = "small"
    adapts_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        GeneratedLoraConfig.__post_init__(self)
        QPAGeneratorConfig.__post_init__(self)
        self.peft_type = QPA  # type: ignore[assignment]
        self.check_format()
        if self.init_lora_weights not in DRAWN_INITS:
            allowed = ", ".join(map(repr, DRAWN_INITS))
            raise ConfigError(
                f"init_lora_weights='{self.init_lora_weights}' depends on data or weights, so its initial values "
                f"cannot be drawn again from a seed; choose one of {allowed}, or use qpeft.attach with that LoRA"
            )
        self.refuse_lora_options("QPA", allowed=("use_dora", "target_parameters"))

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published experiment: rank 4, alpha 8, dropout 0.05 on lm_head, and the published generator."""
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["lm_head"]}
        return super().official(**{**lora, **settings})

    def without_base(self, slots: Sequence[Slot], init: SeededInit, stored: Mapping[str, Tensor]) -> QPAGenerator:
        """The untrained generator; DoRA's magnitudes, the norms of the base's weights, are 0."""
        magnitudes = {slot.label: torch.zeros(slot.shape) for slot in slots if "lora_magnitude_vector" in slot.label}
        return QPAGenerator(self, draw_without_base(slots, self.drawn_init, init, magnitudes), init)

    @property
    def drawn_init(self) -> bool | str:
        return "zero" if self.init_mode == "small" else self.init_lora_weights  # type: ignore[return-value]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "r": self.r}
