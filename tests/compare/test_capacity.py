"""Capacity measurements of every method, compared with PEFT's own matrices, explicit formulas and theory."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

import qpeft
from qpeft.compare.measurements.capacity import NO_MODULE, NOT_FINITE, measure_capacity
from qpeft.compare.measurements.update import CONSTANT, NO_UPDATE, NOT_LINEAR
from qpeft.errors import DataError, UnsupportedTypeError

LM = {"task_type": "CAUSAL_LM"}
LINEAR = {**LM, "target_modules": "all-linear"}
CONFIGS = {
    "lora": lambda: LoraConfig(**LINEAR, r=3),
    "dora": lambda: LoraConfig(**LINEAR, r=3, use_dora=True),
    "vera": lambda: VeraConfig(**LINEAR, r=3),
    "ia3": lambda: IA3Config(**LM),
    "ln_tuning": lambda: LNTuningConfig(**LM),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=3),
    "prompt": lambda: PromptTuningConfig(**LM, num_virtual_tokens=3),
    "qpa": lambda: qpeft.QPAConfig(**LINEAR, r=3, hidden=(6, 5), chunk_size=16, n_layers=3),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(**LINEAR, r=3),
    "sora": lambda: qpeft.SoRAConfig(**LINEAR, r=3),
    "qaa": lambda: qpeft.QAAConfig(**LM),
    "offset": lambda: qpeft.QAAConfig(**LM, feature_source="none"),
    "bottleneck": lambda: qpeft.BottleneckConfig(**LM, bottleneck_size=4),
}
OF_LINEAR_MAPS = ("lora", "dora", "vera", "ia3", "qpa", "quantum_peft", "sora")


def adapted(base, method, by=0.1):
    """A copy of `base` with an adapter whose parameters differ from their initial values."""
    model = copy.deepcopy(base)
    if method != "full":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # PEFT's, of its own LN tuning
            model = get_peft_model(model, CONFIGS[method]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    return model.eval()


def batches(n=3, rows=4, length=20):
    return [{"input_ids": torch.randint(50, (rows, length))} for _ in range(n)]


@pytest.fixture(params=["gpt2", "llama"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("method", [*CONFIGS, "full"])
def test_methods_are_measured_and_nulls_have_reasons(base, method):
    found = measure_capacity(adapted(base, method), base, batches())
    reasons = found["null_reasons"]
    assert {name for name, value in found.items() if value is None} == set(reasons)
    json.dumps(found, allow_nan=False)
    assert found["n_tokens"] == 240
    assert found["measured_at"] == ("blocks" if method in ("prefix", "prompt") else "modules")
    assert 0 <= found["cka"] <= 1
    assert found["cka_last"] == found["blocks"][-1]["cka"]
    assert [block["layer"] for block in found["blocks"]] == [0, 1]
    assert found["block_effective_rank"] <= 16
    rows = found["modules"] or found["blocks"]
    assert found["mean_share"] == pytest.approx(np.mean([row["mean_share"] for row in rows]))


@pytest.mark.parametrize("method", ["lora", "qpa", "quantum_peft", "sora", "vera", "full"])
def test_weight_change_equals_the_merged_delta_weight(base, method):
    # weights after PEFT's own merging minus those of the base
    model = adapted(base, method)
    found = {row["name"]: row for row in measure_capacity(model, base, batches())["modules"]}
    merged = dict((model if method == "full" else model.merge_and_unload()).named_parameters())
    before = dict(base.named_parameters())
    assert len(found) == (8 if "transformer.h.0.attn.c_attn" in found else 14)
    for name, row in found.items():
        change = (merged[f"{name}.weight"].double() - before[f"{name}.weight"].double()).detach().numpy()
        s = np.linalg.svd(change, compute_uv=False)
        s = s[s > 1e-5 * s[0]]
        p = s / s.sum()
        assert row["linear"]
        assert row["weight_effective_rank"] == pytest.approx(np.prod(p ** (-p)), rel=1e-3)
        assert row["weight_stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-3)
        before_norm = np.linalg.norm(before[f"{name}.weight"].detach().double().numpy())
        assert row["weight_norm_ratio"] == pytest.approx(np.linalg.norm(change) / before_norm, rel=1e-3)
        if method not in ("vera", "full"):  # vectors of VeRA make full matrices of width r
            assert row["weight_numerical_rank"] == len(s) <= 3
            assert row["effective_rank"] <= 3 + 1e-6


def test_weight_change_of_dora(llama):
    model = adapted(llama, "dora")
    name = "model.layers.1.mlp.up_proj"
    row = next(row for row in measure_capacity(model, llama, batches())["modules"] if row["name"] == name)
    layer = dict(model.named_modules())[f"base_model.model.{name}"]
    w = layer.base_layer.weight.detach()
    moved = w + layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    s = torch.linalg.svdvals((magnitude / moved.norm(dim=1)).unsqueeze(1) * moved - w).detach().numpy()
    assert row["weight_stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
    assert row["weight_norm_ratio"] == pytest.approx(np.linalg.norm(s) / w.norm().item(), rel=1e-4)
    assert row["weight_numerical_rank"] > 3  # of full rank, unlike the LoRA within


@pytest.mark.parametrize("method", OF_LINEAR_MAPS)
def test_linear_share_of_linear_methods_is_one(llama, method):
    found = measure_capacity(adapted(llama, method), llama, batches(n=8))
    assert all(row["linear"] for row in found["modules"])
    assert found["linear_share"] > 0.98  # the rest is the ridge's
    assert found["change_at_2x"] == pytest.approx(1, abs=1e-3)
    assert found["change_at_minus_x"] == pytest.approx(2, abs=1e-3)
    assert found["jacobian_rank"] == found["weight_effective_rank"]


def test_qaa_ignores_norm_and_sign_and_has_one_feature_per_qubit(base):
    found = measure_capacity(adapted(base, "qaa", by=0.5), base, batches(n=8))
    assert found["change_at_2x"] == pytest.approx(0, abs=1e-3)
    assert found["change_at_minus_x"] == pytest.approx(0, abs=1e-3)
    for row in found["modules"]:
        assert row["effective_rank"] <= 4 + 1e-6  # width 16: 4 qubits
        assert row["jacobian_rank"] <= 4 + 1e-6
        assert row["linear"] is False
        assert row["linear_share"] < 0.95
    assert found["null_reasons"]["weight_stable_rank"] == NOT_LINEAR


def test_mean_share_of_a_constant_offset_is_one(llama):
    found = measure_capacity(adapted(llama, "offset"), llama, batches())
    assert found["mean_share"] == pytest.approx(1, abs=1e-6)
    assert found["effective_rank"] == 0
    assert (found["weight_numerical_rank"], found["weight_norm_ratio"]) == (0, 0)
    assert found["null_reasons"]["linear_share"] == CONSTANT
    assert found["null_reasons"]["weight_effective_rank"] == CONSTANT
    assert found["change_at_2x"] == pytest.approx(0, abs=1e-3)


def test_zero_update_has_null_measurements(base):
    model = get_peft_model(copy.deepcopy(base), CONFIGS["lora"]()).eval()  # B = 0
    found = measure_capacity(model, base, batches())
    assert (found["cka"], found["cka_last"]) == (pytest.approx(1), pytest.approx(1))
    assert found["effective_rank"] is None
    assert found["null_reasons"]["effective_rank"] == NO_UPDATE
    assert found["null_reasons"]["block_effective_rank"] == NO_UPDATE
    assert found["n_modules"] > 0


def test_identical_models_have_no_adapted_module(llama):
    found = measure_capacity(copy.deepcopy(llama), llama, batches())
    assert found["n_modules"] == 0
    assert found["null_reasons"]["weight_stable_rank"] == NO_MODULE


def test_blocks_read_hidden_states_of_the_base(llama):
    # only the first layer is adapted: on the base's own states the second does what it did, though its input differs
    model = copy.deepcopy(llama)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.5 * torch.randn(24, 16)
    found = measure_capacity(model, llama, batches())
    first, second = found["blocks"]
    assert first["effective_rank"] > 1
    assert second["effective_rank"] is None
    assert second["cka"] < 1 - 1e-6
    assert [row["name"] for row in found["modules"]] == ["model.layers.0.mlp.up_proj"]


def test_zero_prefix_has_a_nonzero_update(gpt2):
    # zero keys still take their share of the attention
    model = get_peft_model(copy.deepcopy(gpt2), CONFIGS["prefix"]()).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.zero_()
    assert measure_capacity(model, gpt2, batches())["update_ratio"] > 1e-4


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_ignored(llama, method, side):
    # right-padded rows attend only backwards, so that they are what they are without padding
    model = adapted(llama, method)
    rows = [torch.randint(50, (n,)) for n in (14, 9, 20)]
    alone = [{"input_ids": row[None]} for row in rows]
    padded = {"input_ids": torch.zeros(3, 20, dtype=torch.long), "attention_mask": torch.zeros(3, 20, dtype=torch.long)}
    for i, row in enumerate(rows):
        place = slice(20 - len(row), 20) if side == "left" else slice(len(row))
        padded["input_ids"][i, place], padded["attention_mask"][i, place] = row, 1
    one, many = (measure_capacity(model, llama, given) for given in ([padded], alone))
    assert one["n_tokens"] == many["n_tokens"] == 43
    if side == "right":
        for name in ("effective_rank", "mean_share", "update_ratio", "cka", "block_effective_rank"):
            assert one[name] == pytest.approx(many[name], rel=1e-3)


def test_number_of_tokens_is_limited(llama):
    given = batches(n=3)
    found = measure_capacity(adapted(llama, "lora"), llama, (batch for batch in given), n_tokens=100)
    assert found["n_tokens"] == 100
    again = measure_capacity(adapted(llama, "lora"), llama, given[:2], n_tokens=100)
    assert again["n_tokens"] == 100


def test_non_finite_outputs_give_reasons(llama):
    model = adapted(llama, "lora")
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(torch.nan)
    found = measure_capacity(model, llama, batches())
    assert found["cka"] is None
    assert set(found["null_reasons"].values()) == {NOT_FINITE}
    json.dumps(found, allow_nan=False)


def test_measuring_does_not_change_the_model(base):
    model = adapted(base, "qpa").train()
    before = {name: tensor.clone() for name, tensor in [*model.state_dict().items(), *base.state_dict().items()]}
    measure_capacity(model, base, batches())
    after = dict([*model.state_dict().items(), *base.state_dict().items()])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert not base.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())


def test_encoders_and_image_models_are_measured():
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, **shape)).eval()
    texts = [
        {**batch, "attention_mask": torch.ones(4, 20), "labels": torch.zeros(4, dtype=torch.long)}
        for batch in batches()
    ]
    vit = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval()
    images = [{"pixel_values": torch.randn(6, 3, 8, 8)} for _ in range(2)]
    for base, given, n in ((bert, texts, 240), (vit, images, 2 * 6 * 5)):
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter += torch.randn_like(parameter)
        found = measure_capacity(model, base, given)
        assert found["n_tokens"] == n
        assert found["n_modules"] == 12
        assert found["weight_numerical_rank"] == 2


def test_unsupported_input_raises(llama):
    with pytest.raises(DataError, match="at least 4 tokens"):
        measure_capacity(llama, llama, [])
    with pytest.raises(UnsupportedTypeError, match="no list of None blocks"):
        measure_capacity(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), batches())
