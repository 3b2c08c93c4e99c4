"""Quantum-PEFT's plan against the specification's counts, against what is built, and for models without weights."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import GemmaConfig, LlamaConfig

import qpeft
from qpeft.circuits.counting import resolve_construction
from qpeft.errors import ConfigError, UnsupportedTypeError


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
        (768, 768, {"construction": "qsd_full", "r": 8}, 2 * 103 + 8),
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
    assert plan.lora_rank_1 == d_in + d_out
    assert plan.deployed == plan.rank_bound * (d_in + d_out)
    assert plan.exported_bytes == 4 * plan.deployed


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({}, 0),
        ({"columns": "first"}, 2 * 3),  # 78 of 81 act, on either side
        ({"construction": "qsd_full"}, 2 * 22),
        ({"construction": "qsd_full", "columns": "first"}, 2 * 25),
    ],
)
def test_parameters_with_an_effect_at_width_768(settings, idle):
    plan = plan_of(768, 768, **settings)
    assert plan.trainable - plan.acting == idle
    assert any("have no effect" in note for note in plan.notes) == bool(idle)


def test_parameters_with_an_effect_of_controls():
    assert plan_of(768, 768, entangler="none").acting is None
    assert plan_of(768, 768, family="kronecker").acting is None
    assert plan_of(768, 768, frame="random", family="core").acting == 16


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
    assert plan.acting <= count


SETTINGS = [
    {},
    {"columns": "first", "construction": "qsd_full", "r": 5},
    {"construction": "pad", "n_layers": 2},
    {"family": "lie", "lie_rank": 2},
    {"family": "kronecker", "r": 4},
    {"share": "type"},
    {"bits": 4, "group_size": 5},
    {"bits": 8, "freeze_angles": True},
    {"bits": 3, "share": "type"},
    {"bits": 16, "lambda_bits": 16, "share": "type"},
    {"bits": 8, "lambda_bits": 4, "group_size": 0, "modules_to_save": ["norm"]},
    {"frame": "random", "frame_rank": 8},
    {"frame": "random", "family": "core"},
    {"frame": "weights", "frame_rank": 8, "share": "type"},
    {"frame": "weights", "family": "core", "bits": 16},
    {"frame": "sign", "family": "core"},
    {"frame": "gradient", "frame_rank": 4},
    {"frame": "gradient", "frame_rank": 4, "bits": 2, "store_frames": False},
    {"entangler": "none", "rank_pattern": {"q_proj": 2, "down_proj": 5}},
    {"modules_to_save": ["norm", "input_layernorm"]},
    {"modules_to_save": ["norm", "lm_head"]},
]


@pytest.mark.filterwarnings("ignore:the recursion needs:UserWarning")
@pytest.mark.parametrize("settings", [*SETTINGS, pytest.param({"start": "gradient"}, marks=pytest.mark.long)], ids=str)
def test_plan_equals_the_built_saved_and_exported_adapter(llama, ids, adapters, tmp_path, settings):
    config = {"r": 3, "n_layers": 1, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    plan = qpeft.plan(llama, qpeft.QuantumPeftConfig(**config))
    model = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**config))
    if any(value in ("gradient", "sign") for value in settings.values()):
        qpeft.fit_frames(model, [{"input_ids": ids}])
    assert plan.trainable == model.get_nb_trainable_parameters()[0] == sum(plan.trainable_parts.values())
    adapters.train(model, ids, steps=1)
    assert plan.deployed == qpeft.export(model, tmp_path / "exported").n_generated + plan.trainable_parts["other"]
    qpeft.save(model, tmp_path / "compact")
    for folder, size in (("exported", plan.exported_bytes), ("compact", plan.stored_bytes)):
        assert 0 <= tensor_bytes(tmp_path / folder) - size <= 2 * 32 + 1  # hashes, and whether it is fitted


def tensor_bytes(folder):
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 - no mapping
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the recursion needs:UserWarning")
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.integers(2, 20),
    height=st.integers(2, 20),
    rank=st.integers(1, 6),
    n_layers=st.integers(1, 2),
    construction=st.sampled_from(["auto", "qsd_full", "pad"]),
    columns=st.sampled_from(["first", "spread"]),
)
def test_acting_is_the_rank_of_the_jacobian(width, height, rank, n_layers, construction, columns):
    """Of the update as a function of all trainable parameters, at a random point away from lambda = 0."""
    rank = min(rank, 2 ** (min(width, height).bit_length() - 1))
    config = {"r": rank, "n_layers": n_layers, "construction": construction, "columns": columns}
    base = nn.Sequential(nn.Linear(width, height))
    asked = qpeft.QuantumPeftConfig(target_modules=["0"], **config)
    plan = qpeft.plan(base, asked)
    generator = get_peft_model(base, asked).base_model.generators["default"].double()
    assert plan.acting <= plan.trainable
    values = {name: torch.randn_like(p).double() for name, p in generator.named_parameters()}

    def update(values):
        flat = torch.func.functional_call(generator, values)
        a, b = flat[: rank * width].view(rank, width), flat[rank * width :].view(height, rank)
        return (b @ a).flatten()

    jacobian = torch.autograd.functional.jacobian(
        lambda *v: update(dict(zip(values, v, strict=True))), tuple(values.values())
    )
    matrix = torch.cat([part.flatten(1) for part in jacobian], dim=1)
    found = int(torch.linalg.matrix_rank(matrix.double(), rtol=1e-7))
    in_a_corner = rank == 1 or "pad" in {resolve_construction(n, construction) for n in (width, height)}
    assert found <= plan.acting <= found + (6 if in_a_corner else 0)  # up to three each for U and V


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
    assert (plan.n_circuits, plan.n_qubits) == (18 * 7 * 2, 14)
    frames = qpeft.plan(config, qpeft.QuantumPeftConfig(target_modules="all-linear", frame="random", share="type"))
    assert frames.trainable == 7 * 2 * (5 + 2 * 2 * 4) + 18 * 7 * 8


def test_notes():
    wasteful = plan_of(257, 1023, construction="qsd_full")
    assert "the recursion needs 5302 parameters for 1023 rows; construction='pad' needs 28" in wasteful.notes
    assert any(note.startswith("LoRA of rank 1") for note in wasteful.notes)
    assert any("not a compression" in note for note in plan_of(7, 7, r=1, n_layers=4).notes)
    assert plan_of(1024, 1024).notes == []


def test_plan_errors(llama, gpt2):
    def plan(base, **settings):
        return qpeft.plan(base, qpeft.QuantumPeftConfig(**{"r": 3, "target_modules": "all-linear", **settings}))

    with pytest.raises(UnsupportedTypeError, match=r"Embedding is not supported for transformer\.wte"):
        plan(gpt2, target_modules=["wte"])
    with pytest.raises(ConfigError, match=r"r=20 exceeds min\(d_in, d_out\)=16"):
        plan(llama, r=20)
    with pytest.raises(ConfigError, match="use construction='pad'"):
        plan_of(24, 24, r=17)
    with pytest.raises(ConfigError, match="lie_rank=4 exceeds r=3"):
        plan(llama, family="lie", lie_rank=4)


def test_shared_weight_is_counted_once(llama):
    config = qpeft.QuantumPeftConfig(r=3, target_modules=["q_proj"])
    twice = qpeft.plan(llama, config)
    first, second = (llama.model.layers[i].self_attn.q_proj for i in (0, 1))
    second.weight = first.weight
    once = qpeft.plan(llama, config)
    assert 2 * once.trainable == twice.trainable
    assert any("shares its weight with model.layers.0.self_attn.q_proj" in note for note in once.notes)
