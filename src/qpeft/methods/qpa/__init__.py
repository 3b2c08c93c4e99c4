"""QPA (arXiv 2410.09846): a circuit and a map of its probabilities generate an adapter chunk by chunk."""

from qpeft.methods.method import Method

METHOD = Method(
    key="qpa",
    title="QPA (arXiv 2410.09846)",
    config="qpeft.methods.qpa.config:QPAConfig",
    tuner="qpeft.methods.qpa.model:QPAModel",
    kind="quantum",
    revision=2,
    learning_rate=1.5e-3,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.qpa.settings:QPASettings",
    panel="QPA: the generator of the adapter",
    presets=("paper", "official"),
    generator="qpeft.methods.qpa.generator:QPAGeneratorConfig",
    own_hosts={"lora": {}, "dora": {"use_dora": True}},
    circuit="qpeft.methods.qpa.plan:circuit",
    controls={
        "qnn_frozen": "the frozen circuit",
        "free": "a free vector",
        "random": "fixed noise",
        "none": "no feature",
    },
    count="qpeft.methods.qpa.plan:count_qpa",
    count_attached="qpeft.methods.qpa.plan:count_attached",
    untrained="qpeft.methods.qpa.plan:untrained",
)
