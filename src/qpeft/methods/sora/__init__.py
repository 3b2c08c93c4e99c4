"""SoRA (arXiv 2311.11696): LoRA that loses ranks while it trains."""

from qpeft.methods.method import Method

METHOD = Method(
    key="sora",
    title="SoRA (arXiv 2311.11696)",
    config="qpeft.methods.sora.config:SoRAConfig",
    tuner="qpeft.methods.sora.model:SoRAModel",
    learning_rate=0.02,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.sora.settings:SoRASettings",
    panel="SoRA: gates on LoRA's ranks",
    callbacks="qpeft.methods.sora.callback:callbacks",
    uses_param_groups=True,
    adapter_holds="the adapter with its gates",
    no_export="its gates are all zero: it does nothing",
    count="qpeft.methods.sora.plan:count_sora",
    prunes_ranks=True,
)
