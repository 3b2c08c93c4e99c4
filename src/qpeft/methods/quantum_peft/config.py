"""The PEFT config of Quantum-PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from qpeft.checks import option
from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedLoraConfig, MethodName
from qpeft.errors import ConfigError, setting
from qpeft.methods.quantum_peft.factors import count_drawn
from qpeft.methods.quantum_peft.layout import Layout, Matrix
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig

_A = ".lora_A.weight"
QUANTUM_PEFT = MethodName("QPEFT_QUANTUM_PEFT")


@dataclass
class QuantumPeftConfig(QuantumPeftGeneratorConfig, GeneratedLoraConfig):
    """LoRA's own settings (target_modules, lora_dropout, rank_pattern, ...) and the generator's.

    `r` is the paper's K. `lora_alpha` is s itself: it is not divided by r, because U and V are orthonormal. Norm
    layers named in `modules_to_save` are trained with a folded learning rate as well.

    Example::

        model = get_peft_model(base, QuantumPeftConfig(r=8, n_layers=2, target_modules="all-linear"))

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that Quantum-PEFT cannot generate.
    """

    r: int = option(8, "Rank of the update, the paper's K.")
    lora_alpha: int = option(16, "The factor s of the update; it is not divided by r.")

    def __post_init__(self) -> None:
        GeneratedLoraConfig.__post_init__(self)
        QuantumPeftGeneratorConfig.__post_init__(self)
        self.peft_type = QUANTUM_PEFT  # type: ignore[assignment]
        self.check_format()
        if self.use_rslora:
            raise ConfigError(
                f"{setting('use_rslora')} rescales by r, but Quantum-PEFT's scale is "
                f"{setting('lora_alpha')} itself; leave it unset"
            )
        if self.init_lora_weights is not True:
            raise ConfigError(
                f"init_lora_weights={self.init_lora_weights!r} does not apply: circuits compute the initial values; "
                "leave it unset"
            )
        self.refuse_lora_options("Quantum-PEFT", more=("lora_bias",))

    def count_without_base(self, slots: Sequence[Slot]) -> int | None:
        if self.freeze_angles:  # a compact checkpoint does not contain them
            return None
        shapes = {slot.label: slot.shape for slot in slots}
        names = [label.removesuffix(_A) for label in shapes if label.endswith(_A)]
        pairs = [(name, shapes[f"{name}.lora_B.weight"], shapes[name + _A]) for name in names]
        matrices = [Matrix(name, b[0], a[1], a[0], 1.0) for name, b, a in pairs]
        return count_drawn(self, Layout.of(self, matrices))

    def to_stock(self) -> LoraConfig:
        """The stock LoRA, with scaling 1."""
        stock = super().to_stock()
        stock.lora_alpha, stock.alpha_pattern = stock.r, dict(stock.rank_pattern or {})
        return stock

    def description(self) -> dict[str, Any]:
        names = ["r", "family", "entangler", "share", "frame", "bits", "seed"]
        return {
            "method": "Quantum-PEFT (ICLR 2025, arXiv 2503.05431)",
            **{name: getattr(self, name) for name in (["n_layers"] if self.family == "pauli" else []) + names},
        }
