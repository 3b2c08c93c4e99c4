"""Which types of module each method adapts, as docs/from_lora.md has it."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import MambaConfig, MambaForCausalLM
from transformers.pytorch_utils import Conv1D

import qpeft
from qpeft.errors import ConfigError, InputError

IMAGE = torch.randn(2, 3, 5, 5)
MODULES = {
    "linear": (lambda: nn.Linear(8, 6), torch.randn(2, 8)),
    "conv1d of transformers": (lambda: Conv1D(6, 8), torch.randn(2, 8)),
    "embedding": (lambda: nn.Embedding(9, 8), torch.arange(6).view(2, 3)),
    "convolution": (lambda: nn.Conv2d(3, 6, 3), IMAGE),
    "norm": (lambda: nn.LayerNorm(8), torch.randn(2, 8)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 6, 3), IMAGE),
}
LINEAR = {"linear", "conv1d of transformers"}
METHODS = {
    "qpa": (
        qpeft.QPAConfig,
        {"r": 2, "chunk_size": 8, "init_mode": "raw"},
        LINEAR | {"embedding", "convolution"},
    ),
    "quantum_peft": (qpeft.QuantumPeftConfig, {"r": 2}, LINEAR),
    "sora": (qpeft.SoRAConfig, {"r": 2}, LINEAR),
    "qaa": (qpeft.QAAConfig, {}, LINEAR),
    "cua": (qpeft.CUAConfig, {"block_size": 2}, LINEAR),
    "quic": (qpeft.QuICConfig, {"n_blocks": 2, "base": "pyramid"}, LINEAR),
    "quanta": (qpeft.QuanTAConfig, {}, LINEAR),
    "bottleneck": (
        qpeft.BottleneckConfig,
        {"bottleneck_size": 2},
        LINEAR | {"norm"},
    ),
}


def _base(make):
    torch.manual_seed(0)
    return nn.ModuleDict({"f": make()})


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("method", METHODS)
def test_method_adapts_these_modules_and_refuses_others(method, kind, tmp_path):
    (config, settings, adapts), (make, x) = METHODS[method], MODULES[kind]
    if kind not in adapts:
        for function in (qpeft.plan, get_peft_model):
            with pytest.raises(InputError, match=r"\bf\b|not supported"):
                function(_base(make), config(target_modules=["f"], **settings))
        return
    model = get_peft_model(_base(make), config(target_modules=["f"], **settings))
    output = model.base_model.model["f"](x)
    output.sum().backward()

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert qpeft.plan(_base(make), config(target_modules=["f"], **settings)).trainable == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(_base(make), tmp_path)
    torch.testing.assert_close(
        loaded.base_model.model["f"](x),
        output,
        rtol=0,
        atol=0,
    )


class _Attends(nn.Module):
    """A map, and PyTorch's attention, which reads the weight of its output map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(8, 8)
        self.attends = nn.MultiheadAttention(8, 2)
        self.out_proj = nn.Linear(8, 8)  # of its own, unlike that of the attention

    def forward(self, x):
        x = self.map(x)
        return self.out_proj(self.attends(x, x, x)[0])


GENERATED = {
    "qpa": lambda **targets: qpeft.QPAConfig(r=2, chunk_size=8, **targets),
    "quantum_peft": lambda **targets: qpeft.QuantumPeftConfig(r=2, **targets),
    "sora": lambda **targets: qpeft.SoRAConfig(r=2, **targets),
}


@pytest.mark.parametrize("make", [qpeft.CUAConfig, qpeft.QuanTAConfig, qpeft.QAAConfig])
def test_map_that_is_not_called_is_refused_by_adapters_of_their_own(make):
    with pytest.raises(ConfigError, match=r"reads the weight of attends\.out_proj instead"):
        get_peft_model(_Attends(), make(target_modules=["out_proj"]))
    adapted = get_peft_model(
        _Attends(), make(target_modules=["out_proj"], exclude_modules=["attends.out_proj"])
    )
    assert any(p.requires_grad for p in adapted.parameters())


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("targets", ["all-linear", ["out_proj"]])
@pytest.mark.parametrize("make", [*GENERATED.values(), None], ids=[*GENERATED, "attach"])
def test_map_whose_weight_pytorchs_attention_reads_is_refused(make, targets):
    """A generator would fill its adapter, which no gradient reaches, and merging would add it."""
    message = r"MultiheadAttention reads the weight of attends\.out_proj .*exclude_modules="

    def adapt(**settings):
        if make is None:
            host = get_peft_model(_Attends(), LoraConfig(r=2, **settings))
            return qpeft.attach(host, qpeft.QPAGeneratorConfig(chunk_size=8))
        return get_peft_model(_Attends(), make(**settings))

    with pytest.raises(ConfigError, match=message):
        adapt(target_modules=targets)
    with pytest.raises(ConfigError, match=r"attends is a MultiheadAttention, .* twice"):
        adapt(target_modules=["attends"])

    model = adapt(target_modules=targets, exclude_modules=["attends.out_proj"])
    x = torch.randn(3, 2, 8)
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    live = model(x)
    assert not torch.equal(live, _Attends()(x))
    assert torch.allclose(model.merge_and_unload()(x), live, atol=1e-6)


def test_plan_refuses_what_training_would():
    base = _Attends()
    with pytest.raises(ConfigError, match=r"attends\.out_proj"):
        qpeft.plan(base, GENERATED["qpa"](target_modules=["out_proj"]))


def test_map_that_mambas_kernels_read_is_refused_as_in_peft():
    target = "out_proj"
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=2)
    base = MambaForCausalLM(config)
    with pytest.raises(ConfigError, match=rf"reads the weight of .*mixer\.{target} "):
        get_peft_model(base, qpeft.QPAConfig(r=2, chunk_size=8, target_modules=[target]))
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        get_peft_model(base, LoraConfig(r=2, target_modules=[target]))


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
@pytest.mark.parametrize("make", GENERATED.values(), ids=GENERATED)
def test_adapter_over_a_stock_adapter_is_refused(make):
    """The generator would replace the values of the adapter below, which has the same name."""
    base = get_peft_model(_Attends(), LoraConfig(r=2, target_modules=["map"]))
    with pytest.raises(ConfigError, match="the base model has an adapter already"):
        get_peft_model(base, make(target_modules=["map"]))
