"""The feed-forward adapter as a PEFT tuner: equation, initial values, several adapters, dtypes, errors."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import qpeft
from qpeft.errors import ConfigError, UnsupportedTypeError

B = 4


def adapted(base, **settings):
    return get_peft_model(base, qpeft.BottleneckConfig(**{"bottleneck_size": B, "task_type": "CAUSAL_LM", **settings}))


def tensors(model, adapter_name="default"):
    """The adapter's parameters by their names in the base model, the adapter's left out."""
    return {
        name.removeprefix("base_model.model.").replace(f".{adapter_name}", ""): parameter
        for name, parameter in model.named_parameters()
        if ".bottleneck_" in name and f".{adapter_name}." in name
    }


def shake(model, adapter_name="default"):
    """Change the parameters, so that the adapter has an effect."""
    with torch.no_grad():
        for parameter in tensors(model, adapter_name).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_output_equals_the_equation(llama, activation):
    block = copy.deepcopy(llama.model.layers[0].mlp)
    model = shake(adapted(llama, activation=activation))
    layer = model.base_model.model.model.layers[0].mlp
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    x = torch.randn(3, 5, 16)
    y = block(x)
    act = getattr(nn.functional, activation)
    expected = y + act(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected)
    assert not torch.allclose(layer(x), y, atol=1e-2)


def test_count_and_names(gpt2):
    model = adapted(gpt2)
    widths = [16, 16]
    assert model.get_nb_trainable_parameters()[0] == sum(2 * d * B + B + d for d in widths)
    assert [(name, list(p.shape)) for name, p in tensors(model).items()][:4] == [
        ("transformer.h.0.mlp.bottleneck_down.weight", [B, 16]),
        ("transformer.h.0.mlp.bottleneck_down.bias", [B]),
        ("transformer.h.0.mlp.bottleneck_up.weight", [16, B]),
        ("transformer.h.0.mlp.bottleneck_up.bias", [16]),
    ]


def test_active_adapters_are_summed(llama):
    model = shake(adapted(llama))
    model.add_adapter("other", qpeft.BottleneckConfig(bottleneck_size=2))
    shake(model, "other")
    layer, x, outputs = model.base_model.model.model.layers[0].mlp, torch.randn(2, 16), {}
    for name in ("default", "other", ["default", "other"]):
        model.base_model.set_adapter(name)
        outputs[str(name)] = layer(x)
    expected = outputs["default"] + outputs["other"] - layer.base_layer(x)
    torch.testing.assert_close(outputs["['default', 'other']"], expected)


def test_adapter_in_the_dtype_of_its_base(llama, ids, adapters):
    config = qpeft.BottleneckConfig(bottleneck_size=B)
    model = get_peft_model(llama.bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in tensors(model).values()} == {torch.bfloat16}
    assert adapters.logits(model, ids).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanhh"}, r"unknown activation 'tanhh'; choose one of gelu, relu, silu"),
        ({"target_modules": []}, r"target_modules is empty"),
    ],
)
def test_invalid_options_raise(settings, message):
    with pytest.raises(ConfigError, match=message):
        qpeft.BottleneckConfig(**settings)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["mlpp"], ConfigError, r"target_modules 'mlpp' matches no module; nearest names: mlp"),
        (["mlp", "c_fc"], ConfigError, r"match transformer.h.0.mlp and transformer.h.0.mlp.c_fc within it"),
        (["wte"], UnsupportedTypeError, r"output width of transformer.wte \(Embedding\) is unknown"),
        (["h"], UnsupportedTypeError, r"output width of transformer.h \(ModuleList\) is unknown"),
        (["transformer"], UnsupportedTypeError, r"output width of transformer \(GPT2Model\) is unknown"),
        (["act"], UnsupportedTypeError, r"output width of transformer.h.0.mlp.act"),
    ],
)
def test_unsuitable_targets_raise_and_do_not_change_the_model(gpt2, targets, error, message):
    names = [name for name, _ in gpt2.named_modules()]
    with pytest.raises(error, match=message):
        adapted(gpt2, target_modules=targets)
    assert [name for name, _ in gpt2.named_modules()] == names
    assert all(p.requires_grad for p in gpt2.parameters())


def test_nested_second_adapter_raises(gpt2, ids, adapters):
    model = shake(adapted(gpt2))
    expected = adapters.logits(model, ids)
    with pytest.raises(ConfigError, match=r"match transformer.h.0.mlp and transformer.h.0.mlp.c_proj within it"):
        model.add_adapter("inner", qpeft.BottleneckConfig(target_modules=["c_proj"]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(adapters.logits(model, ids), expected)


def test_model_without_known_blocks_raises():
    with pytest.raises(ConfigError, match=r"name target_modules yourself, of: first, second"):
        get_peft_model(nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.ReLU()}), qpeft.BottleneckConfig())


class Pair(nn.Module):
    """A block with an output that is no tensor."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return {"x": self.linear(x)}


def test_output_without_a_tensor_raises():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), Pair()), qpeft.BottleneckConfig(target_modules=["1"]))
    with pytest.raises(UnsupportedTypeError, match=r"follows Pair, which gave dict"):
        model(torch.zeros(1, 4))


def test_experts_have_the_width_of_the_config(ids, adapters):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
    )
    base = Qwen2MoeForCausalLM(config).eval()
    expected = adapters.logits(base, ids)
    model = adapted(base)
    assert model.base_model.model.model.layers[0].mlp.width == 16
    assert torch.equal(adapters.logits(model, ids), expected)
    assert not torch.equal(adapters.logits(shake(model), ids), expected)


def test_adapter_follows_the_final_norm(gpt2, ids, adapters):
    expected = adapters.logits(gpt2, ids)
    model = adapted(gpt2, target_modules=["ln_f"], bottleneck_size=3)
    assert model.get_nb_trainable_parameters()[0] == 2 * 16 * 3 + 3 + 16
    assert torch.equal(adapters.logits(model, ids), expected)
    assert not torch.equal(adapters.logits(shake(model), ids), expected)


def test_exclude_modules(gpt2):
    model = adapted(gpt2, target_modules="all-linear", exclude_modules=["c_attn"])
    assert {name.rpartition(".")[2] for name in model.base_model.targeted_module_names} == {"c_proj", "c_fc"}
