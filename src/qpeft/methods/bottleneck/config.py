"""The PEFT config of the feed-forward adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from torch import nn

from qpeft.checks import check_fields, option
from qpeft.core import model_card
from qpeft.core.config import MethodName, OwnTunerConfig
from qpeft.methods.bottleneck.settings import BottleneckSettings

BOTTLENECK = MethodName("QPEFT_BOTTLENECK")


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass
class BottleneckConfig(BottleneckSettings, OwnTunerConfig):
    """The feed-forward adapter; 2 d b + b + d parameters for each target module of width d.

    Example::

        model = get_peft_model(base, BottleneckConfig(bottleneck_size=16, target_modules=["mlp"]))

    Raises:
        ConfigError: a setting is out of range.
    """

    target_modules: Collection[str] | str | None = option(
        None,
        "Modules followed by an adapter: ends of names, a pattern of whole names, or all-linear. "
        "Default: the feed-forward block of each layer.",
    )
    activation: str = option("gelu", "Between the two projections.", choices=tuple(ACTIVATIONS))
    dropout: float = option(0.0, "Dropout after the activation, in training.", at_least=0, below=1)
    seed: int = option(0, "Seed of the initial values.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK  # type: ignore[assignment]
        check_fields(self, BottleneckConfig, skip=[f.name for f in fields(OwnTunerConfig)])
        self.check_targets("mlp")

    def card(self) -> model_card.Card:
        names = ("bottleneck_size", "activation", "dropout", "seed")
        return model_card.Card(
            "Feed-forward (bottleneck) adapter",
            tag="bottleneck",
            what="After each of its target modules f this adapter adds `up(act(down(f(x))))` to f(x).\n"
            + model_card.NOT_STOCK,
            settings={name: getattr(self, name) for name in names},
        )
