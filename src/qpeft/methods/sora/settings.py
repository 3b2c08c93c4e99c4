"""The settings of SoRA's gates: plain data, checked, free of torch and PEFT."""

from __future__ import annotations

from dataclasses import dataclass, field

from qpeft.checks import is_positive
from qpeft.errors import ConfigError

GATE_INITS = ("normal", "ones")
HIGHEST_BUDGET = 10


@dataclass
class SoRASettings:
    """What is SoRA's own beside LoRA's settings.

    Raises:
        ConfigError: a value is out of range, or both ways to set the threshold are given.
    """

    shrink_budget: float | None = field(
        default=None,
        metadata={
            "help": "How far a gate without gradient is moved towards 0 over the whole training, in units of the gate, "
            "which starts near 1; 0 shrinks nothing. Default: 1, unless sparse_lambda is given."
        },
    )
    sparse_lambda: float | None = field(
        default=None,
        metadata={"help": "Instead of shrink_budget: each step moves a gate by this times the learning rate."},
    )
    gate_init: str = field(
        default="normal", metadata={"help": "The gates' start: drawn from N(0, 1), or 1.", "choices": GATE_INITS}
    )
    gate_lr_mult: float = field(
        default=1.0, metadata={"help": "The gates' learning rate over that of the rest; needs groups of parameters."}
    )
    export_tol: float = field(
        default=0.0, metadata={"help": "An export leaves out ranks whose gate is at most this far from 0."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the adapter's start."})

    def __post_init__(self) -> None:
        if self.shrink_budget is not None and self.sparse_lambda is not None:
            raise ConfigError("Give either shrink_budget or sparse_lambda, not both.")
        if self.shrink_budget is None and self.sparse_lambda is None:
            self.shrink_budget = 1.0
        for name in ("shrink_budget", "sparse_lambda", "export_tol"):
            value = getattr(self, name)
            if value is not None and not (value == 0 or is_positive(value)):
                raise ConfigError(f"{name} must be >= 0, got {value}.")
        if (self.shrink_budget or 0) > HIGHEST_BUDGET:
            raise ConfigError(f"shrink_budget must be at most {HIGHEST_BUDGET}, got {self.shrink_budget}.")
        if not is_positive(self.gate_lr_mult):
            raise ConfigError(f"gate_lr_mult must be a number above 0, got {self.gate_lr_mult}")
        if self.gate_init not in GATE_INITS:
            raise ConfigError(f"unknown gate_init {self.gate_init!r}; choose one of {', '.join(GATE_INITS)}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed must be a whole number from 0, got {self.seed!r}")
