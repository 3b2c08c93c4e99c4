"""SoRA (arXiv 2311.11696): LoRA that loses ranks while it trains."""

from qpeft.methods.method import Method

METHOD = Method(
    key="sora",
    title="SoRA (arXiv 2311.11696)",
    config="qpeft.methods.sora.model:SoRAConfig",
    tuner="qpeft.methods.sora.model:SoRAModel",
    learning_rate=0.02,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.sora.settings:SoRASettings",
    callback="qpeft.methods.sora.threshold:SoRACallback",
)
