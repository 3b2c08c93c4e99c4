"""Which types of module each method adapts, as docs/from_lora.md has it."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import qpeft
from qpeft.errors import InputError

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
