"""The PEFT config and tuner of QPA over LoRA."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from peft import LoraConfig
from peft.tuners.lora import LoraModel

from qpeft.core.config import GeneratedConfig, refuse_lora_options
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.errors import QpeftWarning
from qpeft.methods.qpa.settings import QPAGeneratorConfig


@dataclass
class QPAConfig(QPAGeneratorConfig, GeneratedConfig, LoraConfig):
    """LoRA's own fields (r, lora_alpha, target_modules, use_dora, rank_pattern, ...) and the
    generator's.

    With features f_c of the probabilities p_b = ``|<b|U(angles)|0>|^2`` (QPA-1), angles in radians,
    and one map M for all chunks c of the flat adapter::

        adapter[c] = M f_c

    Not for a base on which a LoRA of the same number of trained parameters fits: there QPA is not
    shown to be better.

    Example::

        model = get_peft_model(base, QPAConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a field is out of range, or a LoRA option that QPA cannot generate.
    """

    method_name = "QPEFT_QPA"
    _is_lora = True
    adapts_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        GeneratedConfig.__post_init__(self)
        QPAGeneratorConfig.__post_init__(self)
        refuse_lora_options(self, "QPA", allowed=("use_dora", "target_parameters"))
        if self.init_mode != "residual" and self.init_lora_weights is not True:
            with_mode = f"init_mode={self.init_mode!r}, only with 'residual'"
            text = f"init_lora_weights={self.init_lora_weights!r} has no effect with {with_mode}"
            warnings.warn(QpeftWarning(text), stacklevel=3)

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published experiment: rank 4, alpha 8, dropout 0.05 on lm_head, and the published
        generator.
        """
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["lm_head"]}
        fields = lora | settings
        return super().official(**fields)

    @property
    def drawn_init(self) -> bool | str:
        """`init_lora_weights`, or "zero" (A = B = 0) with init_mode small."""
        return "zero" if self.init_mode == "small" else self.init_lora_weights  # type: ignore[return-value]


class QPAModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QPAConfig: a stock LoRA whose every parameter is generated."""
