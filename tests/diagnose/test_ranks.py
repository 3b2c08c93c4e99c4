"""Ranks, compared with NumPy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft_lab.diagnose.ranks import effective_rank, numerical_rank, stable_rank

seeds, sizes = st.integers(0, 2**16), st.integers(1, 9)


def entropy_rank(values):
    """exp of the entropy of values that are scaled to sum 1."""
    p = values.clip(1e-30) / values.sum()
    return np.prod(p ** (-p))


@given(seeds, sizes, sizes)
def test_ranks_equal_numpy_and_keep_bounds(seed, rows, columns):
    matrix = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))
    s = torch.linalg.svdvals(matrix)
    assert effective_rank(s) == pytest.approx(entropy_rank(np.linalg.svd(matrix.numpy(), compute_uv=False)))
    assert stable_rank(s) == pytest.approx(np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)
    assert numerical_rank(s) == np.linalg.matrix_rank(matrix.numpy(), rtol=1e-6)
    assert 1 - 1e-9 <= effective_rank(s) <= min(rows, columns) + 1e-9
    nothing = torch.zeros(rows)
    assert (effective_rank(nothing), stable_rank(nothing), numerical_rank(nothing)) == (0, 0, 0)
