"""Ranks and CKA: the specification's example, bounds, invariances, and equivalent formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.compare.measurements.ranks import effective_rank, linear_cka, numerical_rank, stable_rank

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**16)


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_example_of_the_specification():
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(1.7547653506, abs=1e-10)


@given(seeds, sizes, sizes)
def test_ranks_equal_numpy_and_keep_bounds(seed, rows, columns):
    matrix = _normal(seed, rows, columns)
    s = torch.linalg.svdvals(matrix)
    p = np.linalg.svd(matrix.numpy(), compute_uv=False)
    p = p / p.sum()
    assert effective_rank(s) == pytest.approx(np.prod(p ** (-p)))
    assert stable_rank(s) == pytest.approx(np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)
    assert numerical_rank(s) == np.linalg.matrix_rank(matrix.numpy(), rtol=1e-6)
    assert 1 - 1e-9 <= effective_rank(s) <= min(rows, columns) + 1e-9
    assert 1 - 1e-9 <= stable_rank(s) <= min(rows, columns) + 1e-9


@given(seeds, st.integers(1, 4), st.floats(1e-3, 1e3))
def test_product_of_rank_r_matrices_has_rank_r_at_any_scale(seed, r, scale):
    product = scale * _normal(seed, 9, r) @ _normal(seed + 1, r, 7)
    s = torch.linalg.svdvals(product)
    assert numerical_rank(s) == r
    assert effective_rank(s) <= r + 1e-9


@pytest.mark.parametrize("k", [1, 5])
def test_ranks_of_equal_and_of_zero_singular_values(k):
    assert effective_rank(torch.full((k,), 0.3)) == pytest.approx(k)
    assert stable_rank(torch.full((k,), 0.3)) == pytest.approx(k)
    nothing = torch.zeros(k)
    assert (effective_rank(nothing), stable_rank(nothing), numerical_rank(nothing)) == (0, 0, 0)


@given(seeds, sizes, sizes)
def test_cka_is_symmetric_and_between_0_and_1(seed, d, e):
    x, y = _normal(seed, 20, d), _normal(seed + 1, 20, e)
    assert -1e-12 <= linear_cka(x, y) <= 1 + 1e-12
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


@given(seeds, sizes, st.floats(1e-2, 1e2))
def test_cka_is_invariant_to_rotation_scale_and_offset(seed, d, scale):
    x = _normal(seed, 30, d)
    rotation = torch.linalg.qr(_normal(seed + 1, d, d)).Q
    assert linear_cka(x, scale * x @ rotation + _normal(seed + 2, d)) == pytest.approx(1, abs=1e-10)


@given(seeds, sizes, sizes)
def test_cka_equals_kernel_alignment(seed, d, e):
    # the definition by Gram matrices: <HKH, HLH> / (||HKH|| ||HLH||)
    x, y = _normal(seed, 15, d).numpy(), _normal(seed + 1, 15, e).numpy()
    centring = np.eye(15) - 1 / 15
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(
        (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)
    )


def test_cka_of_a_constant_is_undefined():
    assert linear_cka(torch.ones(5, 3), _normal(0, 5, 2)) is None


def test_cka_of_float32_is_computed_in_float64():
    x = (1e3 + _normal(0, 200, 4)).float()  # a large offset, which float32 sums would not survive
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
