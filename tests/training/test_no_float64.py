"""Scores make no float64 on an accelerator that has none, as MPS."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, move, pretended_device

from qpeft.backends import BackendSettings
from qpeft.circuits import Ansatz
from qpeft_lab.diagnose.adapters import _singular_values
from qpeft_lab.training.measured import _Simulated
from qpeft_lab.training.score import evaluate_examples

RXYZ = Ansatz("rxyz", 2, 1)


@pytest.mark.parametrize("circuit", [None, RXYZ])
def test_simulated_shots_are_drawn_on_the_cpu(circuit):
    values = torch.eye(4) if circuit is None else torch.ones(RXYZ.angle_shape)
    a = torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.0, 2.0, 0.0, 0.0]])
    point = BackendSettings(shots=100)
    expected = _Simulated(point, np.random.default_rng(0))(a, circuit, values)
    with pretended_device():
        measured = _Simulated(point, np.random.default_rng(0))
        answer = measured(a.to(DEVICE), circuit, values.to(DEVICE))
        assert answer.device == DEVICE

    assert torch.equal(answer, expected)


def test_singular_values_are_computed_on_the_cpu():
    with pretended_device():
        values = _singular_values("w", torch.diag(torch.tensor([1.0, 3.0])).to(DEVICE))
    assert values.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("is_regression", [False, True])
def test_scores_are_summed_on_the_cpu(is_regression):
    class Reads(torch.nn.Linear):
        def forward(self, x):
            return SimpleNamespace(logits=super().forward(x))

    def collate(examples):
        inputs, labels = zip(*examples, strict=True)
        return {"x": torch.stack(inputs), "labels": torch.tensor(labels)}

    model = Reads(2, 1 if is_regression else 3)
    examples = [(torch.ones(2), 1), (torch.zeros(2), 0)]
    expected = evaluate_examples(model, examples, collate, is_regression=is_regression)
    with pretended_device():
        move(model)
        on_device = evaluate_examples(model, examples, collate, is_regression=is_regression)

    assert on_device.loss == pytest.approx(expected.loss)
