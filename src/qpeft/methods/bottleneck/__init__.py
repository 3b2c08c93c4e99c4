"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import option
from qpeft.methods.method import Method

METHOD = Method(
    key="bottleneck",
    title="feed-forward (bottleneck) adapter",
    # finds the feed-forward blocks itself
    config="qpeft.methods.bottleneck.model:BottleneckConfig",
    tuner="qpeft.methods.bottleneck.model:BottleneckModel",
    learning_rate=0.03,
    options="qpeft.methods.bottleneck:BottleneckSettings",
    is_host=True,
)


@dataclass(kw_only=True)
class BottleneckSettings:
    """The size of the feed-forward adapter; importable without torch."""

    bottleneck_size: int = option(64, "Inner width b of the adapter.", at_least=1, at_most=2**16)
    seed: int = option(0, "Seed of the initial values.", at_least=0)
