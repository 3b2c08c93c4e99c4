"""Tiny random models of every tested family, each with a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import nn

N_TOKENS = 50
N_LABELS = 3
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


@dataclass(frozen=True)
class Family:
    """A kind of model, a batch for it, and what is adapted."""

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, torch.Tensor]]
    task_type: str | None = "CAUSAL_LM"
    head: str | None = None  # a new head, trained with the adapter
    feed_forward: str | tuple[str, ...] = (
        "mlp"  # end of the names of a bottleneck adapter's default targets
    )

    @property
    def options(self) -> dict[str, Any]:
        """Of the config of an adapter."""
        return {"task_type": self.task_type, "modules_to_save": [self.head] if self.head else None}


def _decoder(name, **settings):
    config_class = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
    small = {
        "vocab_size": N_TOKENS,
        **SIZES,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 32,
    }
    return lambda: getattr(transformers, f"{name}ForCausalLM")(
        config_class(**{**small, **TOKENS, **settings})
    )


def _gpt2_classifier():
    config = tiny_models.gpt2(pad_token_id=0, num_labels=N_LABELS).config
    return transformers.GPT2ForSequenceClassification(config)


def _encoder(name):
    config_class = getattr(transformers, f"{name}Config")
    small = {"vocab_size": N_TOKENS, **SIZES, "max_position_embeddings": 32, "num_labels": N_LABELS}
    return lambda: getattr(transformers, f"{name}ForSequenceClassification")(config_class(**small))


def _t5():
    small = {
        "vocab_size": N_TOKENS,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**small, decoder_start_token_id=0)
    )


def _vit():
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, **image, num_labels=N_LABELS)
    )


def _text():
    ids = torch.randint(1, N_TOKENS, (3, 9))
    return {"input_ids": ids, "labels": ids}


def _labelled_text():
    return {"input_ids": torch.randint(2, N_TOKENS, (3, 9)), "labels": torch.tensor([0, 1, 2])}


def _labelled_images():
    return {"pixel_values": torch.randn(3, 1, 8, 8), "labels": torch.tensor([0, 1, 2])}


FAMILIES = {
    "gpt2": Family(tiny_models.gpt2, _text),
    "llama": Family(tiny_models.llama, _text),
    "mistral": Family(_decoder("Mistral", tie_word_embeddings=False), _text),
    "qwen3": Family(_decoder("Qwen3", tie_word_embeddings=True), _text),
    "gemma": Family(_decoder("Gemma"), _text),
    "gemma2": Family(_decoder("Gemma2", query_pre_attn_scalar=8), _text),
    "gemma3": Family(_decoder("Gemma3", query_pre_attn_scalar=8), _text),
    "t5": Family(_t5, _text, "SEQ_2_SEQ_LM", feed_forward="DenseReluDense"),
    "gpt2-classifier": Family(_gpt2_classifier, _labelled_text, "SEQ_CLS", head="score"),
    "bert": Family(_encoder("Bert"), _labelled_text, "SEQ_CLS", "classifier", "output.dense"),
    "roberta": Family(_encoder("Roberta"), _labelled_text, "SEQ_CLS", "classifier", "output.dense"),
    # transformers 5.5 has no such module
    "vit": Family(
        _vit, _labelled_images, None, head="classifier", feed_forward=("mlp", "output.dense")
    ),
}

# whose layers are those of llama, gemma3 and bert
SECOND = {"mistral", "gemma", "gemma2", "roberta"}


def long_if_second(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] * (name in SECOND)


# mixtures of experts, whose experts (and mostly their router) are parameters instead of modules
_COMMON = {"num_experts_per_tok": 2, "tie_word_embeddings": False}
_LATENT = {
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_SPARSE = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "n_group": 2,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
# PEFT converts LoRA's targets for the first four; the last two have experts that all-linear of
# stock LoRA leaves out
EXPERTS = {
    "mixtral": _decoder("Mixtral", num_local_experts=3, **_COMMON),
    "qwen3_moe": _decoder("Qwen3Moe", num_experts=3, moe_intermediate_size=12, **_COMMON),
    "olmoe": _decoder("Olmoe", num_experts=3, **_COMMON),
    "deepseek_v3": _decoder(
        "DeepseekV3", **_LATENT, **_SPARSE, topk_group=1, num_key_value_heads=2, **_COMMON
    ),
    "qwen2_moe": _decoder(
        "Qwen2Moe",
        num_experts=3,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=8,
        **_COMMON,
    ),
    "gpt_oss": _decoder("GptOss", num_local_experts=3, **_ROPE, **_COMMON),
}


def experts(name: str) -> nn.Module:
    """The model of this key of `EXPERTS`, with the same values in every call."""
    torch.manual_seed(0)
    return EXPERTS[name]().eval()


@pytest.fixture(params=[pytest.param(name, marks=long_if_second(name)) for name in FAMILIES])
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def base(family):
    return family.make().eval()


@pytest.fixture
def batch(family):
    return family.batch()
