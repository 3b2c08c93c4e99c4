"""Expressibility: random states, product circuits, simulated floors, invalid input."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qpeft.circuits import Ansatz
from qpeft.diagnostics import expressibility, haar_states
from qpeft.diagnostics.expressibility import of_fidelities
from qpeft.errors import ConfigError


def _fidelities(n_pairs, n_qubits, field, seed=0):
    states = haar_states(2 * n_pairs, n_qubits, field, seed).view(n_pairs, 2, -1)
    return (states[:, 0].conj() * states[:, 1]).sum(1).abs().square().numpy()


@pytest.mark.parametrize("n_qubits", [1, 4, 8])
def test_random_states_are_at_the_floor(n_qubits):
    result = of_fidelities(_fidelities(4000, n_qubits, "real"), n_qubits)
    assert result.divergence == pytest.approx(result.floor, abs=4 * np.sqrt(2 * 49) / 8000)
    assert "judged by 4,000 pairs" in result.sentence
    assert result.complex_divergence > 5 * result.floor


def test_complex_states_are_at_the_floor_of_their_law():
    result = of_fidelities(_fidelities(4000, 5, "complex"), 5)
    assert result.complex_divergence == pytest.approx(result.floor, abs=4 * np.sqrt(2 * 49) / 8000)
    assert result.divergence > 5 * result.floor


def test_single_qubit_is_at_the_floor():
    assert expressibility(Ansatz("ry_ladder", 1, 1)).divergence < 2 * expressibility(Ansatz("ry_ladder", 1, 1)).floor


def test_divergence_falls_to_the_floor_with_depth():
    found = [expressibility(Ansatz("ry_ladder", 6, depth), samples=3000) for depth in (1, 2, 16)]
    product, shallow, deep = (result.divergence for result in found)
    assert product > 2 * shallow > 10 * deep
    assert product > 30 * found[0].floor
    assert deep < found[2].floor_limit
    assert "do not cover all real states evenly: too many pairs are alike" in found[0].sentence


def test_divergence_equals_scipy_in_bins_of_equal_probability():
    fidelities = _fidelities(500, 3, "real", seed=1) ** 1.5
    edges = stats.beta(0.5, 3.5).ppf(np.linspace(0, 1, 11))
    edges[0], edges[-1] = 0, 1
    shares = np.histogram(fidelities, edges)[0] / 500
    result = of_fidelities(fidelities, 3, n_bins=10)
    np.testing.assert_allclose(result.shares, shares)
    assert result.divergence == pytest.approx(stats.entropy(shares, np.full(10, 0.1)))


@pytest.mark.parametrize(("n_pairs", "n_bins"), [(50, 50), (400, 20), (2000, 50)])
def test_floor_equals_the_mean_of_simulated_counts(n_pairs, n_bins):
    counts = np.random.default_rng(0).multinomial(n_pairs, np.full(n_bins, 1 / n_bins), 4000)
    simulated = stats.entropy(counts / n_pairs, np.full((4000, n_bins), 1 / n_bins), axis=1)
    result = of_fidelities(np.random.default_rng(1).uniform(size=n_pairs), 2, n_bins)
    assert result.floor == pytest.approx(simulated.mean(), abs=4 * simulated.std() / np.sqrt(4000))
    if n_pairs >= 10 * n_bins:
        assert (simulated < result.floor_limit).mean() == pytest.approx(0.95, abs=0.02)


@given(st.sampled_from([0.0, 1.0]), st.integers(1, 10), st.integers(2, 60))
def test_equal_or_orthogonal_pairs_have_the_highest_divergence(fidelity, n_qubits, n_bins):
    result = of_fidelities(np.full(n_bins, fidelity), n_qubits, n_bins)
    assert result.divergence == pytest.approx(np.log(n_bins))
    assert sum(result.shares) == pytest.approx(1)
    json.dumps(result.to_dict(), allow_nan=False)


def test_result_depends_on_the_seed_and_not_on_the_batch_size(monkeypatch):
    ansatz = Ansatz("two_design", 3, 2)
    whole = expressibility(ansatz, samples=100, seed=3)
    monkeypatch.setattr(sys.modules["qpeft.diagnostics.expressibility"], "_AT_ONCE", 64)
    assert expressibility(ansatz, samples=100, seed=3) == whole
    assert expressibility(ansatz, samples=100, seed=4) != whole


@pytest.mark.parametrize(
    ("ansatz", "samples", "n_bins", "message"),
    [
        ("ry_ladder", 0, 50, "samples must be an integer of at least 1, got 0"),
        ("ry_ladder", 100, 1, "at least 2 and at most samples, got 1 bins and 100 samples"),
        ("ry_ladder", 20, 50, "got 50 bins and 20 samples"),
    ],
)
def test_invalid_input_is_refused(ansatz, samples, n_bins, message):
    with pytest.raises(ConfigError, match=message):
        expressibility(Ansatz(ansatz, 3, 1), samples, n_bins=n_bins)
