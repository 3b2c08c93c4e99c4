"""`qpeft.plan`: exact counts at published geometries, and notes. `test_life.py` compares plans with
training.
"""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
)
from variants import of_family

import qpeft
from qpeft.core.generator_holder import count_trainable
from qpeft.core.meta_model import on_meta
from qpeft.errors import ConfigError
from qpeft.methods.qpa.settings import PAPER_HIDDEN, QPAGeneratorConfig

GPT2 = GPT2Config()
_GEMMA = {
    "vocab_size": 256_000,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 18,
}
# Gemma-1-2B
GEMMA = GemmaConfig(**_GEMMA, num_attention_heads=8, num_key_value_heads=1, head_dim=256)
_STORIES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5}
STORIES = LlamaConfig(
    **_STORIES, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True
)


def prefix(size=None):
    encoder = {} if size is None else {"prefix_projection": True, "encoder_hidden_size": size}
    return PrefixTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM", **encoder)


def on_attention(config, **settings):
    return config(target_modules=["c_attn"], task_type="CAUSAL_LM", **settings)


def bottleneck(width):
    return qpeft.BottleneckConfig(bottleneck_size=width)


def quantum_peft(**settings):
    return qpeft.QuantumPeftConfig(**{"target_modules": "all-linear", **settings})


def framed(**settings):
    return quantum_peft(**{"n_layers": 1, "frame": "gradient", **settings})


WIDE = 31 + 40  # angles of Gemma's widths 2048 and 16384; 31 + 22 of 2048 and 256
COUNTS = [  # base, config, trainable and deployed parameters; None: not compared here
    (GPT2, prefix(), 184_320, 184_320),
    (GPT2, prefix(512), 9_857_024, 184_320),  # the encoder is not deployed
    (GPT2, on_attention(LoraConfig, r=8, fan_in_fan_out=True), 294_912, 294_912),
    (GPT2, on_attention(qpeft.QAAConfig), 203_112, None),
    (GPT2, on_attention(qpeft.QAAConfig, feature_source="none"), 18_432, None),
    (GPT2, on_attention(qpeft.SoRAConfig, r=8), 294_912 + 96, None),
    *((GPT2, bottleneck(b), 12 * (2 * 768 * b + b + 768), None) for b in (1, 64)),
    (GPT2, qpeft.QPAConfig.official(), 106_264, 204_100),
    (GEMMA, qpeft.QPAConfig.official(chunk_size=4096), 173_888, 4 * (256_000 + 2048)),
    (GEMMA, bottleneck(16), 18 * (2 * 2048 * 16 + 16 + 2048), None),
    (GEMMA, quantum_peft(r=8, n_layers=1), 18 * (2 * 62 + 2 * (31 + 22) + 3 * WIDE + 7 * 8), None),
    (GEMMA, quantum_peft(frame="random", share="type"), 7 * 2 * (5 + 2 * 2 * 4) + 18 * 7 * 8, None),
    (STORIES, quantum_peft(n_layers=1, construction="pad"), 1460, None),
    (STORIES, framed(r=5, share="type"), 357, None),
    (STORIES, quantum_peft(r=6, frame="gradient", family="core"), 1260, None),
    (STORIES, framed(r=16, frame_rank=16, modules_to_save=["norm"]), 1260 + 11 * 64, None),
]


@pytest.mark.parametrize("base, config, trainable, deployed", COUNTS)
def test_published_counts(base, config, trainable, deployed):
    plan = qpeft.plan(base, config)
    assert plan.trainable == trainable
    assert plan.deployed == (deployed or plan.deployed)
    known = {"gpt2": 124_439_808, "gemma": 2_506_172_416}
    assert plan.base_parameters == known.get(base.model_type, plan.base_parameters)


@pytest.mark.parametrize(
    "d_in, d_out, settings, count",
    [
        (1024, 1024, {"r": 8}, 64),  # (2L+1)(10+10) - 4L + K = 64
        (1024, 1024, {}, 60),
        (768, 768, {"r": 8}, 170),  # 2 x 81 + 8
        (768, 768, {"construction": "pad", "n_layers": 2, "r": 8}, 2 * 46 + 8),
        (768, 512, {"family": "lie"}, 767 + 511 + 4),
        (768, 512, {"family": "lie", "lie_rank": 2}, (767 + 766) + (511 + 510) + 4),
        (768, 512, {"freeze_angles": True}, 4),
    ],
)
def test_quantum_peft_of_one_matrix_has_the_counts_of_the_specification(
    d_in, d_out, settings, count
):
    base = nn.Sequential(nn.Linear(d_in, d_out, device="meta"))
    plan = qpeft.plan(
        base,
        quantum_peft(**of_family({"r": 4, "n_layers": 1, "target_modules": ["0"], **settings})),
    )
    assert plan.trainable == count
    assert plan.deployed == plan.sizes["rank_bound"] * (d_in + d_out)
    assert plan.exported_bytes == 4 * plan.deployed


def test_sizes_and_parts():
    plan = qpeft.plan(GEMMA, qpeft.QPAConfig.official(chunk_size=4096))
    assert plan.target_modules == ["lm_head"]
    assert plan.sizes["n_chunks"] == 252
    assert plan.sizes["n_qubits"] == 8
    assert plan.sizes["hidden"] == PAPER_HIDDEN

    plan = qpeft.plan(GEMMA, quantum_peft(r=8))
    assert plan.sizes["n_circuits"] == 18 * 7 * 2
    assert plan.sizes["n_qubits"] == 14
    assert plan.needs_qpeft
    assert plan.trainable_parts["lambda"] == 18 * 7 * 8

    plan = qpeft.plan(GEMMA, bottleneck(16))
    assert plan.method == "bottleneck"
    assert plan.needs_qpeft is True
    assert plan.exported_bytes is None

    plan = qpeft.plan(GEMMA, VeraConfig(r=4, target_modules=["q_proj"]))
    assert plan.exported_bytes == plan.stored_bytes > 4 * plan.deployed  # with its projections


@pytest.mark.parametrize(
    "base, config, notes",
    [
        (GPT2, qpeft.QPAConfig.official(), ["LoRA of rank 2 on the same modules trains 102,050 "]),
        # no chunk size of this circuit uses the whole budget, which is LoRA of rank 2
        (
            "llama",
            qpeft.QPAConfig(r=4, target_modules=["q_proj"], n_layers=3),
            ["LoRA of rank 2 .* 128 "],
        ),
        (
            "llama",
            qpeft.QPAConfig.paper(r=4, target_modules=["q_proj"], chunk_size=64),
            ["not a compression", "LoRA"],
        ),
        (STORIES, framed(r=1, frame_rank=1), []),
        # LoRA of rank 1 has 194 parameters with the embedding, and 128 without
        (
            "gpt2",
            qpeft.QPAConfig(r=4, target_modules=["wte", "c_attn"], budget=1000),
            ["not a compression", "LoRA of rank 4 .* 776 "],
        ),
        (
            "gpt2",
            qpeft.QPAConfig(
                r=2, target_modules=["c_attn"], rank_pattern={"0.attn.c_attn": 8}, budget=800
            ),
            ["not a compression", "LoRA of rank 2 .* 256 "],
        ),
    ],
)
def test_notes(request, base, config, notes):
    base = request.getfixturevalue(base) if isinstance(base, str) else base
    found = qpeft.plan(base, config).notes
    assert all(re.search(text, note) for note, text in zip(found, notes, strict=True))


@pytest.mark.parametrize("make", [LoraConfig, qpeft.QuantumPeftConfig, qpeft.SoRAConfig])
def test_plan_counts_the_training_of_a_config_for_inference(llama, make):
    plans = [
        qpeft.plan(llama, make(target_modules=["q_proj"], inference_mode=mode))
        for mode in (False, True)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora", "orthogonal", True])
@pytest.mark.parametrize("r", [4, 12])  # keys and values have 8 outputs
def test_factors_of_a_narrow_weight_have_its_rank(llama, init, r):
    targets = ["q_proj", "k_proj", "v_proj"]
    config = LoraConfig(r=r, init_lora_weights=init, target_modules=targets, task_type="CAUSAL_LM")
    plan = qpeft.plan(llama.config, config)

    assert plan.trainable == plan.deployed == count_trainable(get_peft_model(llama, config))


# -- bases on the meta device


@pytest.mark.parametrize(
    "config, task_type, expected",
    [
        (ViTConfig(), None, "ViTModel"),
        (BertConfig(), "SEQ_CLS", "BertForSequenceClassification"),
        (BertConfig(architectures=["BertForMaskedLM"]), None, "BertForMaskedLM"),
        (BertConfig(architectures=["BertForMaskedLM"]), "TOKEN_CLS", "BertForTokenClassification"),
        (T5Config(), "SEQ_2_SEQ_LM", "T5ForConditionalGeneration"),
        (CLIPConfig(), "FEATURE_EXTRACTION", "CLIPModel"),
        (GemmaConfig(), None, "GemmaForCausalLM"),
    ],
)
def test_on_meta_selects_the_class_of_the_task(config, task_type, expected):
    model = on_meta(config, task_type)
    assert type(model).__name__ == expected
    assert all(p.is_meta for p in model.parameters())


def test_base_without_a_model_raises():
    with pytest.raises(ConfigError, match=r"no model for PreTrainedConfig"):
        on_meta(PreTrainedConfig())


# -- QPA's sizes for m parameters

LM_HEAD = 204_100  # GPT-2's, of rank 4


@pytest.mark.parametrize(
    "m, settings, n_chunks, n_qubits, total",
    [
        (LM_HEAD, {"chunk_size": 2048}, 100, 7, 106_264),  # the published count
        (1_032_192, {"chunk_size": 4096}, 252, 8, 173_888),  # Gemma's lm_head
        (10, {"chunk_size": 100}, 1, 1, 41_740),
        (2049, {"chunk_size": 1024}, 3, 2, 72_272),
        (4097, {"chunk_size": 1024}, 5, 3, 72_312),
        # one angle per qubit and layer
        (LM_HEAD, {"chunk_size": 2048, "n_layers": 1}, 100, 7, 106_215),
        # the controls
        (LM_HEAD, {"chunk_size": 2048, "feature_source": "qnn_frozen"}, 100, 7, 106_208),
        (LM_HEAD, {"chunk_size": 2048, "feature_source": "free"}, 100, 7, 106_308),
        (LM_HEAD, {"chunk_size": 2048, "feature_source": "random"}, 100, 7, 106_208),
        (LM_HEAD, {"chunk_size": 2048, "feature_source": "none"}, 100, 7, 106_176),
        # the largest chunk within a budget, which widths of `hidden` may follow; half is the
        # default
        (LM_HEAD, {"budget": 106_264}, 100, 7, 106_264),
        (LM_HEAD, {"budget": 102_050}, 107, 7, 102_040),
        (LM_HEAD, {"budget": 39_146}, 102_050, 17, 39_146),
        (LM_HEAD, {"budget": None, "hidden": None}, 107, 7, 102_040),
        # an eighth of the widths: 4, 8, 16, 16, 8, 4, 4
        (LM_HEAD, {"budget": 2000, "hidden": None}, 837, 10, 1996),
        # several features of a chunk: L (N + k) angles for the ladder, and n K weights
        *(
            (
                46_240,
                {"hidden": (), "features": 16, "chunk_size": 1440, "ansatz": ansatz},
                33,
                10,
                n + 16 * 1440,
            )
            for ansatz, n in (("ry_ladder", 80), ("two_design", 154), ("square", 240))
        ),
    ],
)
def test_published_counts_of_qpa(m, settings, n_chunks, n_qubits, total):
    count = QPAGeneratorConfig.paper(**{"hidden": PAPER_HIDDEN, **settings}).count(m)
    assert count.n_chunks == n_chunks
    assert count.n_qubits == n_qubits
    assert count.total == total


@pytest.mark.parametrize(
    "settings, m, named",
    [
        *(
            (
                {"budget": n - 1, "hidden": PAPER_HIDDEN},
                m,
                rf"budget {n - 1} is too small: .* has {n} ",
            )
            for m, n in ((LM_HEAD, 39_146), (1_032_192, 39_226))
        ),
        ({"features": 1, "chunk_size": 2}, 17 << 17, "more than 20; use chunk_size >= 3"),
        (
            {"features": 4, "chunk_size": 2, "n_generators": 2},
            34 << 15,
            "more than 20; use chunk_size >= 3",
        ),
        ({}, 0, "no trainable adapter parameters"),
    ],
)
def test_impossible_sizes_raise(settings, m, named):
    with pytest.raises(ConfigError, match=named):
        QPAGeneratorConfig(**settings).count(m)
    if "chunk_size" in settings:
        assert QPAGeneratorConfig(**{**settings, "chunk_size": 3}).count(m).n_qubits == 20


@given(
    m=st.integers(1, 3000),
    spend=st.integers(100, 4000),
    n_layers=st.integers(1, 9),
    features=st.sampled_from([1, 2, 8]),
    hidden=st.sampled_from([(), (3, 5, 2)]),
    n_generators=st.sampled_from([1, 2, 3]),
)
def test_largest_chunk_equals_brute_force(m, spend, n_layers, features, hidden, n_generators):
    share = -(-m // n_generators)
    assume((n_generators - 1) * share < m)
    same = {
        "n_layers": n_layers,
        "hidden": hidden,
        "features": features,
        "n_generators": n_generators,
    }
    all_sizes = QPAGeneratorConfig(**same, chunk_size=1)
    affordable = []
    for all_sizes.chunk_size in range(1, share + 1):
        if all_sizes.count(m).total <= spend:
            affordable.append(all_sizes.chunk_size)
    for source in ("qnn", "none"):  # the controls have the chunk size of the trained circuit
        config = QPAGeneratorConfig(**same, budget=spend, feature_source=source)
        if affordable:
            assert config.count(m).chunk_size == affordable[-1]
        else:
            with pytest.raises(ConfigError, match="too small"):
                config.count(m)


def test_budget_that_needs_more_than_twenty_qubits_is_too_small():
    config = QPAGeneratorConfig(features=1, n_layers=1, budget=30)
    with pytest.raises(ConfigError, match="has 36 trainable"):  # 20 angles; 21 + 8 of 21 qubits
        config.count(2**24)


@pytest.mark.parametrize("budget, narrower", [(80_000, 1), (20_000, 2), (6_000, 4), (4_000, 8)])
def test_papers_network_is_narrower_for_smaller_budgets(budget, narrower):
    widths = QPAGeneratorConfig.paper(budget=budget).count(200_000).widths
    assert widths[1:-1] == tuple(width // narrower for width in PAPER_HIDDEN)
