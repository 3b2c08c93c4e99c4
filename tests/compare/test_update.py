"""Measurements of one update, on maps with known results."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qpeft.compare.measurements.update import linear_share, mean_jacobian_rank, measure_module, spread

seeds = st.integers(0, 2**16)
widths = st.integers(2, 9)


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def _nothing(x: torch.Tensor) -> torch.Tensor:
    return 0 * x[:, :1].expand(-1, 5)


@given(seeds, widths, widths)
def test_spread_equals_numpy(seed, d, e):
    x, delta, y = _draw(seed, 40, d), _draw(seed + 1, 40, e) + _draw(seed + 2, e), _draw(seed + 3, 40, e)
    found = spread(x, delta, y)
    variances = np.linalg.eigvalsh(np.cov(delta.double().numpy().T))
    p = variances / variances.sum()
    assert found["effective_rank"] == pytest.approx(np.prod(p ** (-p)))
    size = (delta.double().numpy() ** 2).sum(1).mean()
    assert found["mean_share"] == pytest.approx((delta.double().numpy().mean(0) ** 2).sum() / size)
    assert found["update_ratio"] == pytest.approx(np.sqrt(size / (y.double().numpy() ** 2).sum(1).mean()))


@given(seeds)
def test_rank_with_more_outputs_than_tokens(seed):
    # of 6 tokens in 20 dimensions: the two forms of the covariance share their eigenvalues
    delta = _draw(seed, 6, 20)
    wide = spread(delta, delta, delta)["effective_rank"]
    variances = np.linalg.eigvalsh(np.cov(delta.double().numpy().T)).clip(1e-30)
    p = variances / variances.sum()
    assert wide == pytest.approx(np.prod(p ** (-p)), rel=1e-6)
    assert wide <= 5 + 1e-6


@given(seeds, widths, widths)
def test_linear_share_of_an_affine_map(seed, d, e):
    x = _draw(seed, 400, d)
    delta = x @ _draw(seed + 1, d, e) + 7 * _draw(seed + 2, e)
    assert linear_share(x, delta) == pytest.approx(1, abs=1e-4)


def test_linear_share_of_an_even_function():
    x = _draw(0, 4000, 3)
    assert linear_share(x, x.square()) == pytest.approx(0, abs=0.02)
    half = linear_share(x, torch.cat([x[:, :1], (x[:, 1:2] ** 2 - 1) / 2**0.5], 1))  # equal variances, one linear
    assert half == pytest.approx(0.5, abs=0.05)


def test_linear_share_is_measured_on_held_out_tokens():
    x, noise = (
        _draw(0, 40, 15),
        _draw(1, 40, 3),
    )  # 20 tokens fit 15 parameters: a share without held-out tokens is high
    assert linear_share(x, noise) < 0


def test_ridge_regression():
    x, delta = _draw(3, 60, 4).double(), _draw(4, 60, 2).double()
    a, b = x[:30] - x[:30].mean(0), delta[:30] - delta[:30].mean(0)
    ridge = 1e-3 * (a**2).sum(0).mean() * torch.eye(4)
    weights = np.linalg.solve((a.T @ a + ridge).numpy(), (a.T @ b).numpy())
    missed = delta[30:] - ((x[30:] - x[:30].mean(0)) @ torch.from_numpy(weights) + delta[:30].mean(0))
    expected = 1 - (missed**2).sum() / ((delta[30:] - delta[30:].mean(0)) ** 2).sum()
    assert linear_share(x, delta) == pytest.approx(expected.item(), rel=1e-9)


@settings(max_examples=25)
@given(seeds, widths)
def test_mean_jacobian_equals_autograd(seed, d):
    first, second = _draw(seed, d, 4), _draw(seed + 1, 4, 5)

    def branch(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ first) @ second

    x = _draw(seed + 2, 50, d)
    # a unit that is saturated on every token gives a direction below what counts as one (1e-6 of the variance)
    variances = np.linalg.eigvalsh(np.cov(branch(x).double().numpy().T))[-min(d, 4) :]
    assume(variances[0] > 2e-6 * variances[-1])
    jacobians = torch.stack([torch.autograd.functional.jacobian(branch, row[None])[0, :, 0] for row in x])
    s = torch.linalg.svdvals(jacobians.double().mean(0)).numpy()
    p = s[s > 1e-6 * s[0]] / s.sum()
    found = mean_jacobian_rank(_nothing, branch, x, branch(x).double())
    assert found == pytest.approx(np.prod(p ** (-p)), rel=1e-3)
    assert found <= min(d, 4) + 1e-3


def test_linear_and_nonlinear_modules_are_distinguished():
    weight = _draw(1, 6, 5)
    base, x = torch.nn.Linear(6, 5), _draw(0, 300, 6)
    with torch.no_grad():
        straight = measure_module(base, lambda z: base(z) + z @ weight + 2, x)
        bent = measure_module(base, lambda z: base(z) + (z @ weight).relu(), x)
        even = measure_module(base, lambda z: base(z) + z.square() @ weight, x)
    s = torch.linalg.svdvals(weight)
    assert straight["linear"] is True
    assert straight["null_reasons"] == {}
    assert straight["weight_stable_rank"] == pytest.approx((s.square().sum() / s[0] ** 2).item(), rel=1e-4)
    assert straight["weight_norm_ratio"] == pytest.approx((weight.norm() / base.weight.norm()).item(), rel=1e-5)
    assert (bent["linear"], even["linear"]) == (False, False)
    assert bent["change_at_2x"] == pytest.approx(1, abs=1e-4)  # relu(2 z) = 2 relu(z)
    assert even["change_at_2x"] == pytest.approx(3, abs=1e-4)
    assert even["change_at_minus_x"] == pytest.approx(0, abs=1e-4)


def test_rounding_errors_do_not_count_as_rank():
    base, x = torch.nn.Linear(64, 64), _draw(0, 300, 64)
    column, row = _draw(1, 64, 1), _draw(2, 1, 64)
    with torch.no_grad():
        found = measure_module(base, lambda z: base(z) + 1e-2 * (z @ column) @ row, x)
    assert found["weight_numerical_rank"] == 1
    assert found["weight_effective_rank"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-4)
