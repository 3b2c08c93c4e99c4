"""QPA (arXiv 2410.09846): a circuit and a map of its probabilities generate an adapter chunk by
chunk.
"""

from qpeft.methods.method import MINILM, SMOLLM2, Control, MeasuredRate, Method

METHOD = Method(
    key="qpa",
    title="QPA (arXiv 2410.09846)",
    config="qpeft.methods.qpa.config:QPAConfig",
    tuner="qpeft.methods.qpa.config:QPAModel",
    kind="quantum",
    learning_rate=1.5e-3,
    # SmolLM2, half of LoRA r=8: 1e-3 diverged. SST-2, 2,000 parameters, 80 steps of 16 sentences: 2e-4
    # 55 %, 5e-4 68 %, 1e-3 73 %, 3e-3 at chance
    measured_rates=(
        MeasuredRate(3e-4, SMOLLM2),
        MeasuredRate(1e-3, MINILM, "text-classification"),
    ),
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.qpa.settings:QPAGeneratorConfig",
    generator="qpeft.methods.qpa.settings:QPAGeneratorConfig",
    own_hosts={"lora": {}, "dora": {"use_dora": True}},
    controls={
        "frozen": Control("frozen angles", {"feature_source": "qnn_frozen"}),
        "gaussian": Control("Gaussian features", {"feature_source": "random"}),
    },
    takes_backend=True,
    revision=2,
)
