"""The feed-forward (bottleneck) adapter of Houlsby et al. and Pfeiffer et al."""

from qpeft.methods.method import Method

METHOD = Method(
    key="bottleneck",
    title="feed-forward (bottleneck) adapter",
    config="qpeft.methods.bottleneck.config:BottleneckConfig",  # finds the feed-forward blocks itself
    tuner="qpeft.methods.bottleneck.model:BottleneckModel",
    learning_rate=1e-3,
    is_host=True,
)
