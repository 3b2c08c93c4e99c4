"""The feed-forward adapter as a PEFT tuner: equation, initial values, nested targets."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import qpeft
from qpeft.errors import ConfigError


def adapted(base):
    return get_peft_model(base, qpeft.BottleneckConfig(bottleneck_size=4, task_type="CAUSAL_LM"))


def test_output_equals_the_equation(llama):
    block = copy.deepcopy(llama.model.layers[0].mlp)
    layer = adapted(llama).base_model.model.model.layers[0].mlp
    down, _, up = layer.bottleneck_adapter["default"]

    assert 0.2 < down.weight.abs().max() <= 0.25  # uniform on +-1/sqrt(16)
    assert not any(zero.any() for zero in (down.bias, up.weight, up.bias))

    for parameter in (*down.parameters(), *up.parameters()):
        nn.init.normal_(parameter, 0, 0.3)
    x = torch.randn(3, 5, 16)
    y = block(x)
    expected = y + nn.functional.gelu(y @ down.weight.T + down.bias) @ up.weight.T + up.bias

    torch.testing.assert_close(layer(x), expected)


def test_second_adapter_inside_the_first_is_refused(gpt2):
    model = adapted(gpt2)
    with pytest.raises(ConfigError, match="c_proj"):
        model.add_adapter("inner", qpeft.BottleneckConfig(target_modules=["c_proj"]))
    assert list(model.peft_config) == ["default"]
