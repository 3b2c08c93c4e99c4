"""QPA (arXiv 2410.09846): a circuit and a map of its probabilities generate an adapter chunk by
chunk.
"""

from qpeft.methods.method import Method

METHOD = Method(
    key="qpa",
    title="QPA (arXiv 2410.09846)",
    config="qpeft.methods.qpa.config:QPAConfig",
    tuner="qpeft.methods.qpa.config:QPAModel",
    kind="quantum",
    learning_rate=1.5e-3,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.qpa.settings:QPAGeneratorConfig",
    generator="qpeft.methods.qpa.settings:QPAGeneratorConfig",
    own_hosts={"lora": {}, "dora": {"use_dora": True}},
    takes_backend=True,
    revision=2,
)
