"""Modules that the data never use: one map generates their tensors, too."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import LoraConfig, get_peft_model
from torch import nn

import qpeft
from qpeft.errors import QpeftWarning

X = torch.randn(4, 8)


class _Towers(nn.Module):
    """Two parts, of which a call uses one, as a model of texts and images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text, self.image = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, tower="text"):
        return getattr(self, tower)(x)


def _qpa(**settings):
    config = qpeft.QPAConfig(r=2, chunk_size=8, target_modules=["text", "image"], **settings)
    return get_peft_model(_Towers(), config)


def _attached():
    host = get_peft_model(_Towers(), LoraConfig(r=2, target_modules=["text", "image"]))
    return qpeft.attach(host, qpeft.QPAGeneratorConfig(chunk_size=8))


def _quantum_peft():
    return get_peft_model(_Towers(), qpeft.QuantumPeftConfig(r=2, target_modules=["text", "image"]))


def _train(model, towers, n_steps=2):
    """The messages of qpeft while the model is trained on one tower after the other in each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True, action="always", category=QpeftWarning) as caught:
        for _ in range(n_steps):
            for tower in towers:
                model(X, tower).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("make", [_qpa, _attached])
def test_module_without_a_gradient_is_named_once_and_changes(make):
    model, untrained = make(), make()
    (message,) = _train(model, ["text"])

    assert "no gradient has come to image of 2 adapted modules" in message
    with torch.no_grad():
        assert not torch.equal(model(X, "image"), untrained(X, "image"))


@pytest.mark.parametrize(
    "make, towers",
    [(_qpa, ["text", "image"]), (_attached, ["image", "text"]), (_quantum_peft, ["text"])],
)
def test_nothing_is_said_if_every_module_is_used_or_none_changes_with_another(make, towers):
    model, untrained = make(), make()
    assert _train(model, towers) == []
    with torch.no_grad():
        is_changed = not torch.equal(model(X, "image"), untrained(X, "image"))
    assert is_changed == ("image" in towers)


def test_micro_batches_of_a_window_count_together():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = _qpa()
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings(action="error", category=QpeftWarning):
        for tower in ("text", "image"):
            with accelerator.accumulate(model):
                accelerator.backward(model(X, tower).square().sum())
                optimizer.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_step_without_any_gradient_says_nothing_yet():
    model = _qpa()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(action="error", category=QpeftWarning):
        (0 * model(X)).sum().backward()
        optimizer.step()
    assert len(_train(model, ["text"])) == 1
