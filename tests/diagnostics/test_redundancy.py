"""Redundancy: the specification's ranks, numpy's rank of an autograd Jacobian, special angles, invalid input."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz
from qpeft.circuits.gates import gate_probabilities
from qpeft.diagnostics import redundancy
from qpeft.diagnostics.states import random_angles
from qpeft.errors import ConfigError


@pytest.mark.parametrize(("n_qubits", "rank"), list(enumerate([1, 3, 7, 15, 31, 48, 56, 64], start=1)))
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_equal_those_of_the_specification(n_qubits, rank, seed):
    ansatz = Ansatz("ry_ladder", n_qubits, 8)
    result = redundancy(ansatz, random_angles(ansatz, 1, seed)[0])
    assert (result.rank, result.limit) == (rank, rank)
    assert (result.n_angles, result.n_free) == (8 * n_qubits, 2**n_qubits - 1)


@settings(max_examples=20)
@given(st.sampled_from(["ry_ladder", "two_design"]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_singular_values_equal_those_of_the_autograd_jacobian(name, n_qubits, n_layers, seed):
    ansatz = Ansatz(name, n_qubits, n_layers)
    angles = random_angles(ansatz, 1, seed)[0]
    jacobian = torch.autograd.functional.jacobian(lambda at: gate_probabilities(ansatz, at), angles).flatten(1)
    expected = np.linalg.svd(jacobian.numpy(), compute_uv=False)
    result = redundancy(ansatz, angles)
    np.testing.assert_allclose(result.singular_values, expected, atol=1e-12)
    assert result.rank == (expected > 1e-8 * expected[0]).sum()
    assert result.rank <= result.limit
    json.dumps(result.to_dict(), allow_nan=False)


def test_sentence_follows_the_rank():
    wide, narrow = Ansatz("ry_ladder", 6, 8), Ansatz("ry_ladder", 4, 8)
    assert redundancy(wide, random_angles(wide, 1, 0)[0]).sentence.startswith(
        "No angle is redundant: the 48 angles reach 48 of the 63 directions"
    )
    assert redundancy(narrow, random_angles(narrow, 1, 0)[0]).sentence.startswith(
        "17 of the 32 angles are redundant: only 15 probabilities are free"
    )


def test_rank_is_zero_at_zero_angles():
    """p = (1, 0, ...) is an extreme: every derivative is 0."""
    result = redundancy(Ansatz("ry_ladder", 4, 3), torch.zeros(3, 4))
    assert result.rank == 0
    assert "reaches only 0 directions" in result.sentence


def test_tolerance_is_relative_to_the_largest_value():
    ansatz = Ansatz("ry_ladder", 5, 8)
    angles = random_angles(ansatz, 1, 0)[0]
    values = np.array(redundancy(ansatz, angles).singular_values)
    middle = values[10:12].mean() / values[0]
    assert redundancy(ansatz, angles, tolerance=middle).rank == 11


@pytest.mark.parametrize(
    ("ansatz", "angles", "tolerance", "message"),
    [
        (Ansatz("ry_ladder", 3, 2), torch.zeros(3, 2), 1e-8, r"shape \(2, 3\), got \(3, 2\)"),
        (Ansatz("ry_ladder", 2, 1), torch.tensor([[0.1, torch.nan]]), 1e-8, "NaN or Inf"),
        (Ansatz("ry_ladder", 2, 1), torch.zeros(1, 2), 0.0, "tolerance must lie between 0 and 1, got 0"),
    ],
)
def test_invalid_input_is_refused(ansatz, angles, tolerance, message):
    with pytest.raises(ConfigError, match=message):
        redundancy(ansatz, angles, tolerance)
