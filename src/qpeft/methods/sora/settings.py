"""The fields of SoRA's gates, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError, setting

GATE_INITS = ("normal", "ones")
HIGHEST_BUDGET = 10


@dataclass
class SoRASettings:
    """SoRA's fields in addition to LoRA's.

    Raises:
        ConfigError: a value is out of range, or both ways to set the threshold are given.
    """

    shrink_budget: float | None = option(
        None,
        "How far a gate without gradient moves towards 0 during the whole run. Gates are near 1 initially; "
        "0 shrinks nothing. Default: 1, unless sparse_lambda is given.",
        at_least=0,
        at_most=HIGHEST_BUDGET,
    )
    sparse_lambda: float | None = option(
        None, "Instead of shrink_budget: each step moves a gate by this value times the learning rate.", at_least=0
    )
    gate_init: str = option("normal", "Initial gates: drawn from N(0, 1), or 1.", choices=GATE_INITS)
    gate_lr_mult: float = option(
        1.0, "Learning rate of the gates, relative to the other parameters; requires parameter groups.", above=0
    )
    export_tol: float = option(
        0.0, "An export leaves out ranks whose gate has at most this absolute value.", at_least=0
    )
    seed: int = option(0, "Seed of the initial values.", at_least=0)

    def __post_init__(self) -> None:
        if self.shrink_budget is not None and self.sparse_lambda is not None:
            raise ConfigError(f"Give either {setting('shrink_budget')} or {setting('sparse_lambda')}, not both.")
        if self.shrink_budget is None and self.sparse_lambda is None:
            self.shrink_budget = 1.0
        check_fields(self, SoRASettings)
