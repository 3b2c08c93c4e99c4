"""SoRA as a PEFT tuner: equation, initialization, gates, plan, errors."""

import copy
import json
import math

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

import qpeft
from qpeft.errors import CheckpointError, ConfigError, UnsupportedTypeError

R = 4


def adapted(base, **settings):
    return get_peft_model(base, qpeft.SoRAConfig(**{"r": R, "task_type": "CAUSAL_LM", **settings}))


def layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def shake(model, adapter_name="default", zeros=1):
    """Change the parameters; some gates become exactly zero."""
    with torch.no_grad():
        for layer in layers(model):
            layer.lora_B[adapter_name].weight.normal_(0, 0.3)
            layer.sora_gate[adapter_name][:zeros] = 0.0
    return model.eval()


@pytest.mark.parametrize("base_name", ["gpt2", "llama"])
def test_output_equals_the_equation(base_name, request):
    model = shake(adapted(request.getfixturevalue(base_name), lora_alpha=6))
    for layer in layers(model):
        x = torch.randn(3, 5, layer.in_features)
        a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
        gate = layer.sora_gate["default"]
        expected = layer.base_layer(x) + 6 / R * ((x @ a.T) * gate) @ b.T
        torch.testing.assert_close(layer(x), expected)
        assert not torch.allclose(layer(x), layer.base_layer(x), atol=1e-2)


def test_gradients_of_zero_factors(llama, ids):
    """With B = 0 the gates and A have none; with a gate at 0 its rows of A and columns of B have none."""
    model = adapted(llama, shrink_budget=0)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {n: p.grad.abs().max().item() for n, p in model.named_parameters() if p.requires_grad}
    assert all((value > 0) == ("lora_B" in name) for name, value in gradients.items())
    shake(model).zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    for layer in layers(model):
        a, b, gate = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.sora_gate["default"]
        assert not a.grad[0].any()
        assert not b.grad[:, 0].any()
        assert gate.grad.all()
        assert a.grad[1:].all()
        assert b.grad[:, 1:].any()


def test_distribution_of_initial_values():
    model = get_peft_model(nn.Sequential(nn.Linear(100, 30)), qpeft.SoRAConfig(r=1000, target_modules=["0"]))
    layer = layers(model)[0]
    a, gate = layer.lora_A["default"].weight, layer.sora_gate["default"]
    assert a.abs().max() <= 0.1 < a.abs().max() + 1e-4
    assert abs(a.std().item() - 0.1 / math.sqrt(3)) < 1e-3
    assert abs(gate.mean()) < 0.15
    assert abs(gate.std() - 1) < 0.1
    assert not layer.lora_B["default"].weight.any()


def test_rank_pattern_determines_the_gates(llama):
    model = adapted(llama, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3})
    found = {(site.rpartition(".")[2], len(gate)) for site, _, gate in model.base_model.gates()}
    assert found == {("q_proj", 2), ("v_proj", R)}


def test_folder_without_gates_raises(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    fresh = copy.deepcopy(llama)
    qpeft.save(adapted(llama), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1.self_attn.q_proj.sora_gate" not in k}, file)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "weights_sha256": None}))
    with pytest.raises(CheckpointError, match=r"contains no sora_gate for .*layers\.1\.self_attn\.q_proj"):
        qpeft.load(fresh, tmp_path)


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_gates_stay_float32_in_half_precision(llama, ids, autocast_adapter_dtype):
    config = qpeft.SoRAConfig(r=R, shrink_budget=0)
    model = get_peft_model(llama.bfloat16(), config, autocast_adapter_dtype=autocast_adapter_dtype)
    assert {layer.lora_A["default"].weight.dtype for layer in layers(model)} == {
        torch.float32 if autocast_adapter_dtype else torch.bfloat16
    }
    model.bfloat16()
    assert {gate.dtype for _, _, gate in model.base_model.gates()} == {torch.float32}
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(gate.grad is not None for _, _, gate in model.base_model.gates())


def test_training_without_a_threshold_warns_once(llama, ids, recwarn):
    def texts():
        return [str(w.message) for w in recwarn if "SoRA" in str(w.message)]

    model = adapted(llama).train()
    model(input_ids=ids)
    model(input_ids=ids)
    assert texts() == ["SoRA: no threshold hook is attached; gates will not become zero. Use qpeft.SoRACallback."]
    recwarn.clear()
    adapted(copy.deepcopy(model.unload()), shrink_budget=0).train()(input_ids=ids)
    assert texts() == []


def test_plan(gpt2):
    plan = qpeft.plan(gpt2, qpeft.SoRAConfig(r=R, modules_to_save=["ln_f"]))
    sites, width = 2, 16 + 48
    assert plan.trainable_parts == {"adapter": sites * R * width, "gates": sites * R, "other": 32}
    model = adapted(copy.deepcopy(gpt2), modules_to_save=["ln_f"])
    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    assert plan.deployed == plan.trainable - sites * R
    assert plan.needs_qpeft
    assert "are maxima" in plan.notes[0]
    assert "every rank remains" in qpeft.plan(gpt2, qpeft.SoRAConfig(shrink_budget=0)).notes[0]


def test_parameter_groups(llama):
    model = adapted(llama, gate_lr_mult=5.0, modules_to_save=["lm_head"])
    groups = {group["name"]: group for group in qpeft.param_groups(model, lr=1e-3, weight_decay=0.1)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "other": (1e-3, 0.1),
        "gates": (5e-3, 0.0),
    }
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in groups["gates"]["params"]) == 2 * 2 * R


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink_budget": 1.0, "sparse_lambda": 0.1}, "Give either shrink_budget or sparse_lambda, not both."),
        ({"shrink_budget": -1.0}, r"shrink_budget must be at least 0, got -1\.0"),
        ({"sparse_lambda": -0.1}, r"sparse_lambda must be at least 0, got -0\.1"),
        ({"use_dora": True}, "SoRA cannot be combined with LoRA's use_dora"),
        ({"lora_bias": True}, "SoRA cannot be combined with LoRA's lora_bias"),
        ({"bias": "all"}, "SoRA cannot be combined with bias='all'"),
        ({"init_lora_weights": "pissa"}, "SoRA cannot be combined with init_lora_weights='pissa'"),
    ],
)
def test_invalid_options_raise(settings, message):
    with pytest.raises(ConfigError, match=message):
        qpeft.SoRAConfig(**settings)


def test_unsupported_targets_raise(llama):
    with pytest.raises(UnsupportedTypeError, match=r"Embedding is not supported for model\.embed_tokens"):
        adapted(llama, target_modules=["embed_tokens"])
    assert not layers(llama)
    with pytest.raises(ConfigError, match="q_prj"):
        adapted(llama, target_modules=["q_prj"])


def test_weighted_sum_raises(llama):
    model = adapted(llama)
    model.add_adapter("other", qpeft.SoRAConfig(r=R))
    with pytest.raises(ConfigError, match="a weighted sum of SoRA adapters has no gates"):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")
