"""Trainable and deployed parameters for GPT-2 small, compared with the specification."""

import pytest
from peft import LoraConfig, PrefixTuningConfig
from transformers import GPT2Config

import qpeft

GPT2_SMALL = GPT2Config()


def prefix(**changes):
    return PrefixTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM", **changes)


def lora(r: int):
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)


@pytest.mark.parametrize(
    ("config", "trainable"),
    [
        (prefix(), 184_320),
        (prefix(prefix_projection=True, encoder_hidden_size=512), 9_857_024),
        (prefix(prefix_projection=True, encoder_hidden_size=768), 14_772_480),
        (lora(5), 184_320),
        (lora(6), 221_184),
        (lora(8), 294_912),
        (qpeft.QAAConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"), 203_112),
        (qpeft.QAAConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", feature_source="none"), 18_432),
        (qpeft.SoRAConfig(r=8, target_modules=["c_attn"], task_type="CAUSAL_LM"), 294_912 + 96),
    ],
)
def test_trainable_parameters(config, trainable):
    assert qpeft.plan(GPT2_SMALL, config).trainable == trainable


@pytest.mark.parametrize("size", [None, 512, 768])
def test_prefix_encoder_is_not_deployed(size):
    config = prefix() if size is None else prefix(prefix_projection=True, encoder_hidden_size=size)
    assert qpeft.plan(GPT2_SMALL, config).deployed == 184_320


def test_shared_embedding_counts_once():
    assert qpeft.plan(GPT2_SMALL, lora(8)).base_parameters == 124_439_808


@pytest.mark.parametrize("width", [1, 16, 64])
def test_bottleneck_parameters(width):
    config = qpeft.BottleneckConfig(bottleneck_size=width, target_modules=["mlp"], task_type="CAUSAL_LM")
    assert qpeft.plan(GPT2_SMALL, config).trainable == 12 * (2 * 768 * width + width + 768)
