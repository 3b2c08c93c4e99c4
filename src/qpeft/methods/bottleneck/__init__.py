"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al."""

from qpeft.methods.method import Method

METHOD = Method(
    key="bottleneck",
    title="feed-forward (bottleneck) adapter",
    config="qpeft.methods.bottleneck.config:BottleneckConfig",  # finds the feed-forward blocks itself
    tuner="qpeft.methods.bottleneck.model:BottleneckModel",
    learning_rate=0.03,
    options="qpeft.methods.bottleneck.settings:BottleneckSettings",
    panel="Bottleneck: the feed-forward adapter",
    is_host=True,
)
