"""A generator's step reads no tensor value: on an accelerator this would wait for all queued work."""

from contextlib import nullcontext

import pytest
import torch

import qpeft
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.qpa.generator import QPAGenerator


def qpa(**settings):
    config = qpeft.QPAGeneratorConfig(**{"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, **settings})
    return lambda llama: QPAGenerator(config, torch.zeros(800), SeededInit(0))


def quantum_peft(**settings):
    def make(llama):
        from peft import get_peft_model

        config = qpeft.QuantumPeftConfig(r=4, n_layers=2, target_modules="all-linear", **settings)
        return get_peft_model(llama, config).base_model.generators["default"]

    return make


@pytest.mark.parametrize(
    "make",
    [
        qpa(),
        qpa(chunk_size=2),
        qpa(feature_source="free"),
        qpa(feature_source="none"),
        quantum_peft(),
        quantum_peft(entangler="signs"),
        quantum_peft(bits=4),
        quantum_peft(family="lie"),
        quantum_peft(family="kronecker"),
    ],
)
def test_forward_and_backward_read_no_tensor_value(llama, make, monkeypatch):
    """On the meta device every `.item()` and every branch on a value raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unsupported on that device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    generator = make(llama).to("meta")
    flat = generator()
    flat.sum().backward()
    assert flat.is_meta
    assert all(p.grad is not None for p in generator.parameters())
