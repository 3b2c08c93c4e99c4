"""The Lie-algebra family compared with dense matrix functions."""

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits.lie import count_lie, lie_columns, lie_matrix


def skew(b):
    """A (N, N) from the strictly lower triangle of b (N, K')."""
    a = np.zeros((len(b), len(b)))
    a[:, : b.shape[1]] = np.tril(b, -1)
    return a - a.T


def cayley(a):
    return np.linalg.solve(np.eye(len(a)) - a / 2, np.eye(len(a)) + a / 2)


DENSE = {"exp": scipy.linalg.expm, "cayley": cayley}
every_map = pytest.mark.parametrize("lie_map", DENSE)


def draw(n, rank, norm, seed=0):
    """b (N, K') float64, arbitrary above the diagonal, such that A has spectral norm `norm`."""
    b = np.random.default_rng(seed).normal(size=(n, rank))
    return torch.tensor(b * norm / np.linalg.norm(skew(b), 2))


def orthogonality_error(u):
    return (u.double().mT @ u.double() - torch.eye(u.shape[-1], dtype=torch.float64)).abs().max().item()


@every_map
@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 40), st.floats(0.01, 3.9), st.integers(0, 2**31))
def test_columns_equal_those_of_dense_matrix_functions(lie_map, rank, more, rows, norm, seed):
    n, k = rank + more + rows, rank + more
    b = draw(n, rank, norm, seed)
    expected = DENSE[lie_map](skew(b.numpy()))[:, :k]
    np.testing.assert_allclose(lie_columns(b, k, lie_map).numpy(), expected, rtol=0, atol=1e-10)
    batch = lie_columns(torch.stack([b, -b]), k, lie_map)
    np.testing.assert_allclose(batch[1].numpy(), DENSE[lie_map](-skew(b.numpy()))[:, :k], rtol=0, atol=1e-10)


@pytest.mark.parametrize("lie_map", ["exp", "cayley"])
@pytest.mark.parametrize("size", [(16, 1, 4), (33, 2, 5), (64, 4, 8), (64, 8, 8)], ids=str)
def test_large_norms(lie_map, size):
    n, rank, k = size
    b = draw(n, rank, 19.0)
    u = lie_columns(b, k, lie_map)
    np.testing.assert_allclose(u.numpy(), DENSE[lie_map](skew(b.numpy()))[:, :k], rtol=0, atol=1e-10)
    assert orthogonality_error(u) < 1e-12


@pytest.mark.parametrize("lie_map", ["exp", "cayley"])
@pytest.mark.parametrize("n", [3072, 50257])
def test_float32_columns_are_orthonormal(lie_map, n):
    b = 0.2 * torch.tensor(np.random.default_rng(n).normal(size=(n, 2)), dtype=torch.float32)
    u = lie_columns(b, 8, lie_map)
    assert u.dtype == torch.float32
    assert orthogonality_error(u) <= 1e-5


@every_map
@pytest.mark.parametrize("norm", [0.0, 1.5])
def test_gradients_against_finite_differences(lie_map, norm):
    b = draw(7, 2, 1.0) * norm  # zero: phi's matrix is singular there
    assert torch.autograd.gradcheck(partial(lie_columns, k=3, lie_map=lie_map), (b.requires_grad_(),))
    assert torch.autograd.gradcheck(
        partial(lie_columns, k=3, lie_map=lie_map), (torch.stack([b, -b]).detach().requires_grad_(),)
    )


def test_packing_is_column_by_column():
    b = lie_matrix(torch.arange(1.0, 8.0), 5, 2)
    assert b.tolist() == [[0, 0], [1, 0], [2, 5], [3, 6], [4, 7]]
    assert lie_matrix(torch.ones(2, 3, 7), 5, 2).shape == (2, 3, 5, 2)
    assert [count_lie(*size) for size in ((16, 4), (1024, 1), (5, 2), (2, 1))] == [54, 1023, 7, 1]
