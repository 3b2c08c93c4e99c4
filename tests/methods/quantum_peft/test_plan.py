"""Quantum-PEFT's plan against the specification's counts, against what is built, and for models without weights."""

import pytest
from torch import nn
from transformers import GemmaConfig, LlamaConfig

import qpeft


def plan_of(d_in, d_out, **settings):
    """The plan for one matrix."""
    return qpeft.plan(
        nn.Sequential(nn.Linear(d_in, d_out, device="meta")),
        qpeft.QuantumPeftConfig(**{"r": 4, "n_layers": 1, "target_modules": ["0"], **settings}),
    )


@pytest.mark.parametrize(
    ("d_in", "d_out", "settings", "count"),
    [
        (1024, 1024, {"r": 8}, 64),  # (2L+1)(10+10) - 4L + K = 64
        (1024, 1024, {}, 60),
        (768, 768, {"r": 8}, 170),  # 2 x 81 + 8
        (768, 2304, {"r": 8}, 182),  # 81 + 93 + 8
        (4096, 11008, {"r": 8}, 82),  # 34 + 40 + 8
        (768, 768, {"construction": "pad", "n_layers": 2, "r": 8}, 2 * 46 + 8),
        (768, 512, {"family": "lie"}, 767 + 511 + 4),
        (768, 512, {"family": "lie", "lie_rank": 2}, (767 + 766) + (511 + 510) + 4),
        (768, 512, {"freeze_angles": True}, 4),
    ],
)
def test_counts_of_the_specification(d_in, d_out, settings, count):
    plan = plan_of(d_in, d_out, **settings)
    assert plan.trainable == count
    assert plan.deployed == plan.sizes["rank_bound"] * (d_in + d_out)
    assert plan.exported_bytes == 4 * plan.deployed


STORIES260K = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"n_layers": 1, "r": 8, "construction": "pad"}, 1460),
        ({"n_layers": 2, "r": 8, "construction": "pad"}, 2200),
        ({"n_layers": 1, "r": 5, "share": "type", "frame": "gradient", "frame_rank": 32}, 357),
        ({"n_layers": 1, "r": 2, "share": "type", "frame": "gradient", "frame_rank": 4}, 126),
        ({"n_layers": 1, "r": 16, "frame": "gradient", "frame_rank": 16}, 1260),
        ({"n_layers": 1, "r": 16, "frame": "random", "frame_rank": 16}, 1260),
        ({"family": "core", "r": 6, "frame": "gradient"}, 1260),
        ({"n_layers": 1, "r": 16, "frame": "gradient", "frame_rank": 16, "modules_to_save": ["norm"]}, 1260 + 11 * 64),
    ],
)
def test_counts_of_the_study(settings, count):
    plan = qpeft.plan(STORIES260K, qpeft.QuantumPeftConfig(target_modules="all-linear", **settings))
    assert len(plan.target_modules) == 35
    assert plan.trainable == count


def test_gemma_from_its_config():
    config = GemmaConfig(
        vocab_size=256_000,
        hidden_size=2048,
        num_hidden_layers=18,
        intermediate_size=16_384,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    )
    plan = qpeft.plan(config, qpeft.QuantumPeftConfig(r=8, n_layers=1, target_modules="all-linear"))
    small = 31 + 22  # v of width 2048, u of width 256
    wide = 31 + 40  # one side of width 2048, the other of 16384
    assert plan.trainable == 18 * (2 * 62 + 2 * small + 3 * wide + 7 * 8)
    assert plan.base_parameters == 2_506_172_416
    assert (plan.sizes["n_circuits"], plan.sizes["n_qubits"]) == (18 * 7 * 2, 14)
    frames = qpeft.plan(config, qpeft.QuantumPeftConfig(target_modules="all-linear", frame="random", share="type"))
    assert frames.trainable == 7 * 2 * (5 + 2 * 2 * 4) + 18 * 7 * 8


def test_notes():
    assert any(note.startswith("LoRA of rank 4") for note in plan_of(257, 1023, construction="qsd", n_layers=4).notes)
    assert any("not a compression" in note for note in plan_of(7, 7, r=1, n_layers=4).notes)
    assert plan_of(1024, 1024).notes == []
