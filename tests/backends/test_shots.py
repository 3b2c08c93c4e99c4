"""Shots and parameter shift: unbiased, refused where hopeless, and exact where the result must be."""

import numpy as np
import pytest
import torch
from peft import PeftModel

import qpeft
from qpeft.backends.shots import ParameterShift, choose
from qpeft.circuits import probabilities
from qpeft.errors import ConfigError


@pytest.fixture
def angles():
    return (0.1 * (1 + torch.arange(6, dtype=torch.float64)).reshape(2, 3)).requires_grad_()


def gradient(run, angles):
    p = run(angles)
    return torch.autograd.grad((torch.arange(8, dtype=torch.float64) * p).sum(), angles)[0]


def test_without_shots_parameter_shift_equals_the_adjoint(angles):
    shifted, adjoint = gradient(ParameterShift(None, 0), angles), gradient(probabilities, angles)
    torch.testing.assert_close(shifted, adjoint, atol=1e-12, rtol=0)


def test_sampled_gradients_are_unbiased(angles):
    """Mean of 300 gradients of 1000 shots within 4 standard errors, and the spread is that of sampling."""
    sampled = ParameterShift(1000, seed=0)
    found = torch.stack([gradient(sampled, angles) for _ in range(300)])
    error = found.std(dim=0) / np.sqrt(300)
    assert ((found.mean(dim=0) - gradient(probabilities, angles)).abs() < 4 * error).all()
    assert (error > 0).all()


def test_frequencies_have_the_multinomial_spread(angles):
    sampled = ParameterShift(1000, seed=1)
    draws = torch.stack([sampled(angles.detach()) for _ in range(2000)])
    p = probabilities(angles.detach())
    assert torch.equal(draws.sum(dim=1).round(decimals=9), torch.ones(2000, dtype=torch.float64))
    torch.testing.assert_close(draws.var(dim=0), p * (1 - p) / 1000, atol=2e-6, rtol=0.15)


def test_a_seed_repeats_the_counts(angles):
    draws = [ParameterShift(100, seed)(angles.detach()) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "shots must be a positive integer or None, got 0"),
        ({"shots": 2.5}, "shots must be a positive integer or None, got 2.5"),
        (
            {"shots": 100, "gradient": "adjoint"},
            "gradient='adjoint' needs exact probabilities; use gradient='parameter-shift'",
        ),
        ({"gradient": "guess"}, "unknown gradient 'guess'; choose one of auto, adjoint, parameter-shift"),
        ({"backend": "abacus"}, "unknown backend 'abacus'; choose one of exact"),
    ],
)
def test_hopeless_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        choose(**{"backend": "exact", "shots": None, "gradient": "auto", "n_qubits": 2, "seed": 0, **settings})


def test_few_shots_warn():
    with pytest.warns(UserWarning, match="159 shots for 16 outcomes: most probabilities will be dominated"):
        choose("exact", 159, "auto", 4, 0)


def test_training_with_shots_starts_exact_and_exports_exactly(llama, ids, adapters, tmp_path):
    base = adapters.logits(llama, ids)
    model = adapters.qpa(llama, chunk_size=64, feature_map="squash")
    qpeft.set_backend(model, shots=2000)
    noisy = adapters.logits(model, ids)
    torch.testing.assert_close(noisy, base, atol=1e-2, rtol=0)  # sampling noise around the exact start
    assert not torch.equal(noisy, base)
    before = model(input_ids=ids, labels=ids).loss.item()
    assert adapters.train(model, ids, steps=10)(input_ids=ids, labels=ids).loss < before
    report = qpeft.export(model, tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6
    qpeft.set_backend(model)
    exact = adapters.logits(model, ids)
    stock = PeftModel.from_pretrained(model.unload(), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, ids), exact, atol=1e-6, rtol=0)


def test_a_model_without_a_circuit(llama, adapters):
    with pytest.raises(ConfigError, match="the model has no circuit"):
        qpeft.set_backend(llama, shots=100)
    with pytest.raises(ConfigError, match="the model has no circuit"):
        qpeft.set_backend(adapters.qpa(llama, feature_source="none"), shots=100)
