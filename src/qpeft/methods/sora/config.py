"""The PEFT config of SoRA."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from qpeft.checks import check_value, is_count
from qpeft.core import model_card
from qpeft.core.config import MethodName, check_factors
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import ConfigError
from qpeft.methods.sora.settings import SoRASettings

SORA = MethodName("QPEFT_SORA")


_NOT_GATED = ("target_parameters", "use_qalora", "layer_replication", "lora_bias")


@dataclass
class SoRAConfig(SoRASettings, SealedConfig, LoraConfig):
    """LoRA's settings (r, the rank to begin with, lora_alpha, target_modules, ...) and those of the gates.

    Training needs `qpeft.SoRACallback`. Example::

        model = get_peft_model(base, SoRAConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        Trainer(model=model, callbacks=[SoRACallback()], ...).train()

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that cannot be gated.
    """

    lora_alpha: int = field(default=16, metadata={"help": "The update is multiplied by lora_alpha / r.", "above": 0})
    sora_lambda: float | None = field(
        default=None,
        metadata={"help": "Threshold divided by the learning rate; filled in when training begins.", "filled_in": True},
    )
    planned_steps: int | None = field(
        default=None,
        metadata={"help": "Optimizer steps for which sora_lambda was computed; filled in with it.", "filled_in": True},
    )

    def __post_init__(self) -> None:
        LoraConfig.__post_init__(self)
        SoRASettings.__post_init__(self)
        self.peft_type = SORA  # type: ignore[assignment]
        if not is_count(self.r):  # PEFT looks at it only when it builds the adapter
            raise ConfigError(f"r must be a positive integer, got {self.r}")
        check_factors(vars(self))
        check_value(type(self).__dataclass_fields__["lora_alpha"], self.lora_alpha)
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout!r}")
        self._refuse_lora_options()

    def _refuse_lora_options(self) -> None:
        variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]
        for name in (*variants, *_NOT_GATED):
            if getattr(self, name, None):
                raise ConfigError(f"SoRA cannot be combined with {name}; leave it unset")
        for name, usual in (("init_lora_weights", True), ("bias", "none")):
            if getattr(self, name) != usual:
                raise ConfigError(f"SoRA cannot be combined with {name}={getattr(self, name)!r}; leave it unset")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        model_card.write_own_card(
            Path(save_directory),
            "SoRA adapter with its gates",
            tag="sora",
            what="LoRA with a gate on each rank (arXiv 2311.11696); training moves gates to exact zero, and an export "
            "leaves their ranks\nout.",
            settings=("r", "lora_alpha", "shrink_budget", "sparse_lambda", "gate_init", "gate_lr_mult", "seed"),
            export=model_card.EXPORT,
        )
