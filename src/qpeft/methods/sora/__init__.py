"""SoRA (arXiv 2311.11696): LoRA that loses ranks while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError
from qpeft.methods.method import Method

METHOD = Method(
    key="sora",
    title="SoRA (arXiv 2311.11696)",
    config="qpeft.methods.sora.model:SoRAConfig",
    tuner="qpeft.methods.sora.model:SoRAModel",
    learning_rate=0.02,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.sora:SoRASettings",
    callback="qpeft.methods.sora.threshold:SoRACallback",
    needs_param_groups=True,
)


@dataclass
class SoRASettings:
    """SoRA's fields in addition to LoRA's; importable without torch.

    Raises ConfigError if a value is out of range, or both ways to set the threshold are given.
    """

    shrink_budget: float | None = option(
        None,
        "How far a gate without gradient moves towards 0 during the whole run. Gates are drawn from"
        " N(0, 1); 0 shrinks nothing. Default: 1, unless sparse_lambda is given.",
        at_least=0,
        at_most=10,
    )
    sparse_lambda: float | None = option(
        None,
        "Instead of shrink_budget: each step moves a gate by this value times the learning rate.",
        at_least=0,
    )
    seed: int = option(0, "Seed of the initial values.", at_least=0)

    def __post_init__(self) -> None:
        if self.shrink_budget is not None and self.sparse_lambda is not None:
            raise ConfigError("Give either shrink_budget or sparse_lambda, not both.")
        if self.shrink_budget is None and self.sparse_lambda is None:
            self.shrink_budget = 1.0
        check_fields(self, SoRASettings)
