"""The PEFT config of SoRA."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig

from qpeft.checks import option
from qpeft.core import model_card
from qpeft.core.config import MethodName, refuse_lora_options
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import ConfigError
from qpeft.methods.sora.settings import SoRASettings

SORA = MethodName("QPEFT_SORA")


@dataclass
class SoRAConfig(SoRASettings, SealedConfig, LoraConfig):
    """LoRA's settings (r, the rank to begin with, lora_alpha, target_modules, ...) and those of the gates.

    Training needs `qpeft.SoRACallback`. Example::

        model = get_peft_model(base, SoRAConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        Trainer(model=model, callbacks=[SoRACallback()], ...).train()

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that cannot be gated.
    """

    lora_alpha: int = option(16, "The update is multiplied by lora_alpha / r.")
    sora_lambda: float | None = option(
        None, "Threshold divided by the learning rate; filled in when training begins.", filled_in=True
    )
    planned_steps: int | None = option(
        None, "Optimizer steps for which sora_lambda was computed; filled in with it.", filled_in=True
    )

    def __post_init__(self) -> None:
        SealedConfig.__post_init__(self)
        SoRASettings.__post_init__(self)
        self.peft_type = SORA  # type: ignore[assignment]
        refuse_lora_options(self, "SoRA", more=("lora_bias",))
        for name, usual in (("init_lora_weights", True), ("bias", "none")):
            if getattr(self, name) != usual:
                raise ConfigError(f"SoRA cannot be combined with {name}={getattr(self, name)!r}; leave it unset")

    def card(self) -> model_card.Card:
        names = ("r", "lora_alpha", "shrink_budget", "sparse_lambda", "gate_init", "gate_lr_mult", "seed")
        return model_card.Card(
            "SoRA adapter with its gates",
            tag="sora",
            what="LoRA with a gate on each rank (arXiv 2311.11696); training sets gates to exactly zero, and an export "
            "leaves out\ntheir ranks.",
            settings={name: getattr(self, name) for name in names},
            can_export=True,
        )
