"""Effective rank of generated matrices, against numpy and closed forms."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.diagnostics.effective_rank import effective_rank
from qpeft.errors import ConfigError

SIDES = st.integers(1, 9)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@given(st.integers(0, 2**16), SIDES, SIDES, SIDES)
def test_factors_have_the_ranks_of_their_product(seed, rows, r, columns):
    b, a = normal(seed, rows, r), normal(seed + 1, r, columns)
    (found,) = effective_rank({"w": (b, a)}).matrices
    s = np.linalg.svd((b @ a).numpy(), compute_uv=False)[: min(rows, r, columns)]
    share = s / s.sum()
    assert found.possible == len(found.singular_values) == min(rows, r, columns)
    assert found.singular_values == pytest.approx(tuple(s), rel=1e-9, abs=1e-12 * s[0])
    assert found.entropy_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert found.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
    assert found.numerical_rank == (s > 1e-6 * s[0]).sum()
    assert (found.rows, found.columns) == (rows, columns)


def test_ranks_with_closed_forms():
    """n equal singular values have rank n by every measure; (1, 1/2) has entropy ln 3 - 2/3 ln 2, stable rank 5/4."""
    found = effective_rank({"equal": torch.eye(5), "two": torch.diag(torch.tensor([1.0, 0.5]))})
    equal, two = found.matrices
    assert (equal.entropy_rank, equal.stable_rank, equal.numerical_rank) == pytest.approx((5, 5, 5))
    assert two.entropy_rank == pytest.approx(3 / 2 ** (2 / 3))
    assert two.stable_rank == pytest.approx(1.25)
    assert found.entropy_rank == pytest.approx((5 + two.entropy_rank) / 2)


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_ranks_do_not_depend_on_scale(scale, seed):
    w = normal(seed, 6, 4)
    once, scaled = (effective_rank({"w": x}).matrices[0] for x in (w, scale * w))
    assert scaled.entropy_rank == pytest.approx(once.entropy_rank)
    assert scaled.stable_rank == pytest.approx(once.stable_rank)
    assert scaled.numerical_rank == once.numerical_rank


def test_zero_matrices_are_not_averaged():
    zero = torch.zeros(4, 2), normal(0, 2, 3)
    nothing = effective_rank({"w": zero})
    assert nothing.entropy_rank == 0
    assert "Every matrix is zero" in nothing.sentence
    both = effective_rank({"w": zero, "v": torch.eye(3)})
    assert both.entropy_rank == pytest.approx(3)
    assert both.possible == 3


def test_sentence_follows_the_ranks():
    one = effective_rank({"w": (normal(0, 8, 1) @ torch.ones(1, 4, dtype=torch.float64), torch.eye(4))})
    assert "practically multiples of one row" in one.sentence
    steep = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 7))
    assert "less than half" in effective_rank({"w": steep}).sentence
    assert "most of the possible rank" in effective_rank({"w": torch.eye(4)}).sentence
    assert json.loads(json.dumps(one.to_dict()))["matrices"][0]["numerical_rank"] == 1


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({}, "no matrix"),
        ({"w": torch.ones(3)}, r"w: give a matrix"),
        ({"w": (torch.ones(3, 2), torch.ones(3, 2))}, r"found shapes \[\(3, 2\), \(3, 2\)\]"),
        ({"w": torch.full((2, 2), torch.nan)}, "w contains NaN"),
        ({"w": torch.ones(0, 3)}, "give a matrix"),
    ],
)
def test_invalid_matrix_is_refused(updates, message):
    with pytest.raises(ConfigError, match=message):
        effective_rank(updates)
