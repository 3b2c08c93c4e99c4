"""Plans of real geometries, without their weights, from configs written by hand."""

import pytest
from peft import LoraConfig
from safetensors import safe_open
from transformers import (
    BertConfig,
    CLIPConfig,
    GemmaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

import qpeft
from qpeft.core.meta_model import on_meta
from qpeft.errors import ConfigError

PAPER_WIDTHS = (32, 64, 128, 128, 64, 32, 32)


@pytest.fixture(scope="module")
def gemma():
    """Gemma-1-2B: 2,506,172,416 parameters, tied head of 256,000 x 2,048."""
    return GemmaConfig(
        vocab_size=256_000,
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=8192,
    )


@pytest.fixture(scope="module")
def roberta():
    """RoBERTa-base with MNLI's three classes."""
    return RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, num_labels=3)


def test_published_count_at_gemmas_geometry(gemma):
    plan = qpeft.plan(gemma, qpeft.QPAConfig.official(chunk_size=4096))
    assert plan.base_parameters == 2_506_172_416
    assert plan.target_modules == ["lm_head"]
    assert plan.deployed == 4 * (256_000 + 2048) == 1_032_192
    assert (plan.sizes["n_chunks"], plan.sizes["n_qubits"], plan.sizes["hidden"]) == (252, 8, PAPER_WIDTHS)
    assert plan.trainable == 173_888


def test_quantum_peft_and_bottleneck_at_gemmas_geometry(gemma):
    plan = qpeft.plan(gemma, qpeft.QuantumPeftConfig(r=8, target_modules=["q_proj", "v_proj"]))
    assert plan.deployed == 8 * 18 * (2 * 2048 + 2048 + 256)
    assert plan.trainable_parts["lambda"] == 18 * 2 * 8
    plan = qpeft.plan(gemma, qpeft.BottleneckConfig(bottleneck_size=16))
    assert plan.trainable == plan.deployed == 18 * (2 * 2048 * 16 + 16 + 2048)
    assert (plan.method, plan.needs_qpeft, plan.exported_bytes) == ("bottleneck", True, None)


def test_count_equals_that_of_a_published_adapter(roberta, shared):
    """microsoft/LoRA's RoBERTa-base on MNLI: rank 8 on query and value, and the classification head."""
    with safe_open(shared / "models/roberta_base_lora_mnli/lora_mnli.safetensors", framework="pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    pairs = {name: shape for name, shape in sizes.items() if "lora_" in name}
    head = {name: shape for name, shape in sizes.items() if "lora_" not in name}
    real = sum(a * b for a, b in pairs.values())
    targets = {"r": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    stock, ours = (qpeft.plan(roberta, make(**targets)) for make in (LoraConfig, qpeft.QPAConfig))
    of_head = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in head.values())
    assert len(stock.target_modules) == len(pairs) / 2
    assert stock.trainable == real + of_head
    assert ours.deployed == stock.deployed
    assert ours.trainable_parts["other"] == of_head
    assert ours.trainable <= of_head + 0.5 * real


@pytest.mark.parametrize(
    ("config", "task_type", "expected"),
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


def test_config_without_a_model_raises():
    with pytest.raises(ConfigError, match=r"transformers has no model for PreTrainedConfig; give the model itself"):
        on_meta(PreTrainedConfig())
