"""SoRA as a PEFT tuner: equation, initial values, warnings; export: ranks, patterns, counts, equal
outputs.
"""

import copy
import math
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from variants import move

import qpeft
from qpeft import SoRACallback
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.files import read_json

R = 4


def adapted(base, **settings):
    return get_peft_model(base, qpeft.SoRAConfig(**{"r": R, "task_type": "CAUSAL_LM", **settings}))


def parts(model):
    """A, B and g of each layer."""
    generator = model.base_model.generators["default"]
    shapes = [factor.shape for factor in generator.tensors]
    split = generator.factors.split([shape.numel() for shape in shapes])
    factors = [part.view(shape) for part, shape in zip(split, shapes, strict=True)]
    return zip(factors[::2], factors[1::2], generator.gates_by_module().values(), strict=True)


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_output_equals_the_equation(base, request):
    """W x + alpha / r B (g * A x), layer by layer."""
    model = move(adapted(request.getfixturevalue(base), lora_alpha=6))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer, (a, b, gate) in zip(layers, parts(model), strict=True):
        x = torch.randn(3, 5, layer.in_features)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 6 / R * ((x @ a.T) * gate) @ b.T)


def test_distribution_of_initial_values():
    """A uniform, g normal, B zero: a new adapter changes nothing."""
    model = get_peft_model(
        nn.Sequential(nn.Linear(100, 1000)), qpeft.SoRAConfig(r=1000, target_modules=["0"])
    )
    ((a, b, gate),) = parts(model)
    assert a.abs().max() <= 0.1 < a.abs().max() + 1e-4
    assert abs(a.std().item() - 0.1 / math.sqrt(3)) < 1e-3
    assert abs(gate.mean()) < 0.15
    assert abs(gate.std() - 1) < 0.1
    assert not b.any()

    config = qpeft.SoRAConfig(r=1000, target_modules=["0"], init_lora_weights="gaussian")
    ((a, _, _),) = parts(get_peft_model(nn.Sequential(nn.Linear(100, 1000)), config))
    assert abs(a.std().item() - 1 / 1000) < 1e-5


@pytest.mark.parametrize(
    "settings, warnings",
    [
        ({}, 1),
        ({"sparse_lambda": 0.1}, 1),
        ({"shrink_budget": 0}, 0),
    ],
)
def test_training_without_a_threshold_warns_once(llama, ids, recwarn, settings, warnings):
    def ours():
        return [warning for warning in recwarn.list if issubclass(warning.category, QpeftWarning)]

    model = adapted(llama, **settings)
    with torch.no_grad():
        model.train()(input_ids=ids)
    model.eval()(input_ids=ids)

    assert not ours()

    for _ in range(2):
        model.train()(input_ids=ids)
    assert len(ours()) == warnings


@pytest.mark.parametrize("kind", ["without a task type", "copied", "second adapter"])
def test_model_that_its_callback_does_not_reach_warns(llama, ids, kind):
    model = adapted(llama, **({"task_type": None} if kind == "without a task type" else {}))
    if kind != "without a task type":
        optimizer = torch.optim.SGD(qpeft.param_groups(model, lr=0.1))
        SoRACallback.attach(optimizer, model, steps=2)
        model(input_ids=ids)
    if kind == "copied":
        model = copy.deepcopy(model)
    if kind == "second adapter":
        model.add_adapter("other", model.peft_config["default"])
        model.set_adapter("other")
    with pytest.warns(QpeftWarning, match="gates will not become zero"):
        model.train()(input_ids=ids)


def gated(base, ranks, **settings):
    """An adapter with this number of nonzero gates in each module."""
    torch.manual_seed(1)
    model = get_peft_model(base, qpeft.SoRAConfig(**{"r": 8, "task_type": "CAUSAL_LM", **settings}))
    with torch.no_grad():
        generator = model.base_model.generators["default"]
        generator.factors.normal_(0, 0.3)
        for gate, rank in zip(generator.gates_by_module().values(), ranks, strict=True):
            gate[torch.randperm(len(gate))[: len(gate) - rank]] = -0.0
    return model.eval()


def test_ranks_patterns_and_counts(llama, tmp_path):
    """An export keeps the nonzero gates alone, as PEFT's patterns of ranks and scales."""
    ranks = [3, 0, 5, 3]
    model = gated(llama, ranks, target_modules=["q_proj", "v_proj"], lora_alpha=16)
    report = qpeft.export(model, tmp_path / "out")
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]

    assert report.ranks == dict(zip(names, ranks, strict=True))

    widths = [32, 24, 32, 24]
    assert report.n_deployed == sum(r * w for r, w in zip(ranks, widths, strict=True))
    assert report.n_trained == sum(8 * w + 8 for w in widths)

    config = read_json(tmp_path / "out" / "adapter_config.json")
    assert config["peft_type"] == "LORA"
    assert config["r"] == 5
    assert config["lora_alpha"] == 10

    keys = [f"^{re.escape(name)}" for name in [names[0], *names[2:]]]
    assert config["rank_pattern"] == dict(zip(keys, [3, 5, 3], strict=True))
    assert config["alpha_pattern"] == dict(zip(keys, [6, 10, 6], strict=True))
    assert config["target_modules"] == [names[0], *names[2:]]

    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(t.numel() for t in state.values()) == report.n_deployed
    assert {t.dtype for t in state.values()} == {torch.float32}


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_and_exclusions_are_kept(llama, ids, tmp_path, rslora):
    """Stock PEFT computes the same from the exported patterns."""
    fresh = copy.deepcopy(llama)
    settings = {
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 2},
        "use_rslora": rslora,
    }
    model = gated(
        llama,
        [4, 2, 0, 3],
        target_modules=r".*\.(q|v|o)_proj",
        exclude_modules=r".*o_proj",
        **settings,
    )
    model.add_adapter("other", qpeft.SoRAConfig(r=2, target_modules=["k_proj"]))  # is not exported
    expected = model(input_ids=ids).logits
    report = qpeft.export(model, tmp_path)

    assert list(report.ranks.values()) == [4, 2, 0, 3]

    stock = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(
        stock(input_ids=ids).logits,
        expected,
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "ranks, value",
    [
        ([0, 0, 0, 0], 0.0),
        ([3, 4, 5, 6], math.nan),
    ],
)
def test_adapter_without_an_effect_and_non_finite_gates_are_not_exported(
    llama, tmp_path, ranks, value
):
    model = gated(llama, ranks)
    with torch.no_grad():
        model.base_model.generators["default"].gates[0] = value
    with pytest.raises(ConfigError):
        qpeft.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
