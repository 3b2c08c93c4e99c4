"""SoRA as a PEFT tuner: equation, initial values, gradients, warnings."""

import math

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

import qpeft
from qpeft.errors import ConfigError, QpeftWarning

R = 4


def adapted(base, **settings):
    return get_peft_model(base, qpeft.SoRAConfig(**{"r": R, "task_type": "CAUSAL_LM", **settings}))


def layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def parts(layer):
    """A, B and g of a gated layer."""
    b = layer.lora_B["default"]
    return layer.lora_A["default"].weight, b.b.weight, b.sora_gate.g


def shake(model):
    """Change the parameters; the first gate of each layer becomes zero."""
    with torch.no_grad():
        for _, b, gate in map(parts, layers(model)):
            b.normal_(0, 0.3)
            gate[:1] = 0.0
    return model.eval()


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_output_equals_the_equation(base, request):
    for layer in layers(shake(adapted(request.getfixturevalue(base), lora_alpha=6))):
        x = torch.randn(3, 5, layer.in_features)
        a, b, gate = parts(layer)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 6 / R * ((x @ a.T) * gate) @ b.T)


def test_distribution_of_initial_values():
    model = get_peft_model(nn.Sequential(nn.Linear(100, 1000)), qpeft.SoRAConfig(r=1000, target_modules=["0"]))
    a, b, gate = parts(layers(model)[0])
    assert a.abs().max() <= 0.1 < a.abs().max() + 1e-4
    assert abs(a.std().item() - 0.1 / math.sqrt(3)) < 1e-3
    assert abs(gate.mean()) < 0.15
    assert abs(gate.std() - 1) < 0.1
    assert not b.any()


@pytest.mark.parametrize(("settings", "warnings"), [({}, 1), ({"sparse_lambda": 0.1}, 1), ({"shrink_budget": 0}, 0)])
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


def test_weighted_sum_raises(llama):
    model = adapted(llama)
    model.add_adapter("other", qpeft.SoRAConfig(r=R))
    with pytest.raises(ConfigError, match="weighted"):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")
