"""Porter-Thomas test: random states, uniform p-values, scipy's distance, extreme and invalid input."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qpeft.circuits import Ansatz
from qpeft.diagnostics import haar_states, porter_thomas, random_probabilities
from qpeft.diagnostics.haar import HaarLaw
from qpeft.diagnostics.porter_thomas import _TESTED
from qpeft.errors import ConfigError

OTHER = {"real": "complex", "complex": "real"}


def _haar(samples, n_qubits, field, seed):
    return haar_states(samples, n_qubits, field, seed).abs().square()


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize(("samples", "n_qubits"), [(200, 8), (1, 10), (20, 12), (500, 4)])
def test_random_states_pass_for_their_field_and_fail_for_the_other(field, samples, n_qubits):
    p = _haar(samples, n_qubits, field, seed=6)
    own, other = porter_thomas(p, field), porter_thomas(p, OTHER[field])
    assert own.p_value > 0.01
    assert own.distance < 0.05
    assert abs(own.ipr - own.expected_ipr) < 4 * own.ipr_error
    assert abs(own.entropy - own.expected_entropy) < 4 * own.entropy_error
    assert "indistinguishable" in own.sentence
    assert other.p_value == 1 / 200
    assert other.distance > 0.1
    assert "differ from those of" in other.sentence
    assert own.other_distance == other.distance


@pytest.mark.parametrize(("samples", "size"), [(1, 64), (5, 16), (4, 2)])
def test_p_values_are_uniform_for_random_states(samples, size):
    found, naive = [], []
    for seed in range(120):
        p = np.random.default_rng(seed).dirichlet([0.5] * size, samples)
        found.append(porter_thomas(p).p_value)
        naive.append(stats.kstest(p.flatten(), stats.beta(0.5, 0.5 * (size - 1)).cdf).pvalue)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 0.01, "otherwise this test could not detect a wrong p-value"


def test_p_values_are_uniform_for_a_subset(monkeypatch):
    monkeypatch.setattr(sys.modules["qpeft.diagnostics.porter_thomas"], "_TESTED", 40)
    found = []
    for seed in range(120):
        of_each = porter_thomas(np.random.default_rng(seed).dirichlet([0.5] * 32, 10))
        assert of_each.n_tested == 40
        found.append(of_each.p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert porter_thomas(np.full((50, 2), 0.5)).n_tested == 40


def test_number_of_tested_probabilities_is_limited():
    result = porter_thomas(_haar(300, 8, "real", seed=1))
    assert _TESTED - 300 < result.n_tested <= _TESTED


@pytest.mark.parametrize("field", OTHER)
def test_distance_equals_scipy(field):
    p = random_probabilities(Ansatz("ry_ladder", 7, 4), 30).numpy()
    expected = stats.kstest(p.flatten(), HaarLaw(field, 128).cdf).statistic
    assert porter_thomas(p, field).distance == pytest.approx(expected, abs=1 / 4096)


def test_moments_equal_numpy():
    p = random_probabilities(Ansatz("two_design", 6, 2), 20).numpy()
    result = porter_thomas(p)
    assert result.ipr == pytest.approx(64**2 * np.mean(p**2))
    assert result.entropy == pytest.approx(stats.entropy(p, axis=1).mean())
    assert result.largest == pytest.approx(64 * p.max())
    assert (result.n_states, result.n_outcomes) == (20, 64)


def test_histogram_contains_every_probability():
    p = _haar(400, 8, "real", seed=2)
    histogram = porter_thomas(p).histogram
    widths = np.diff(histogram.edges)
    assert (widths * histogram.density).sum() + histogram.beyond == pytest.approx(1)
    law = stats.beta(0.5, 127.5)
    np.testing.assert_allclose(
        np.cumsum(widths * histogram.expected_density), law.cdf(np.array(histogram.edges[1:]) / 256)
    )
    counts = np.array(histogram.density) * widths * p.numel()
    expected = np.array(histogram.expected_density) * widths * p.numel()
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, len(counts))


def test_only_shallow_circuits_differ_from_random_states():
    shallow = porter_thomas(random_probabilities(Ansatz("ry_ladder", 8, 8), 200))
    deep = porter_thomas(random_probabilities(Ansatz("ry_ladder", 8, 24), 200))
    assert shallow.p_value == 1 / 200
    assert "close to those of random real states but measurably different" in shallow.sentence
    assert "more uneven" in shallow.sentence
    assert deep.p_value > 0.01
    assert shallow.ipr > deep.ipr + 10 * deep.ipr_error


@settings(max_examples=25)
@given(
    st.sampled_from(["constant", "one", "haar", "zeros"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(sorted(OTHER)),
)
def test_extreme_probabilities_give_finite_results(kind, n_qubits, samples, field):
    size = 2**n_qubits
    p = {
        "constant": np.full((samples, size), 1 / size),
        "one": np.eye(size)[np.zeros(samples, dtype=int)],
        "haar": _haar(samples, n_qubits, field, seed=n_qubits).numpy(),
        "zeros": np.eye(size)[np.arange(samples) % size] / 2 + np.eye(size)[np.zeros(samples, dtype=int)] / 2,
    }[kind]
    result = porter_thomas(p, field)
    floats = [value for value in result.to_dict().values() if isinstance(value, float)]
    assert np.isfinite(floats).all()
    assert 1 / 200 <= result.p_value <= 1
    assert 0 <= result.distance <= 1
    assert 0 <= result.entropy <= np.log(size) + 1e-12
    assert 1 - 1e-12 <= result.ipr <= size
    assert result.sentence.endswith(".")
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_state_may_be_a_vector_or_float32():
    p = _haar(1, 9, "real", seed=3)
    whole, flat = porter_thomas(p), porter_thomas(p[0])
    assert whole == flat
    assert porter_thomas(p.float().numpy()).ipr == pytest.approx(whole.ipr, rel=1e-5)
    assert porter_thomas(p) == whole  # the same data, the same p-value


def test_sentence_at_intermediate_p_values():
    clear = porter_thomas(_haar(50, 8, "real", seed=4))
    assert "weak evidence" in replace(clear, p_value=0.03).sentence
    assert "measurably different" in replace(clear, p_value=0.006).sentence
    assert "p ≤ 0.005" in replace(clear, p_value=0.005, distance=0.3).sentence
    assert "only large ones" in porter_thomas(_haar(1, 3, "real", seed=4)).sentence


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (np.full((2, 2, 2), 0.5), "of shape"),
        (np.ones((3, 1)), "at least 2 probabilities, got 1"),
        (np.zeros((0, 4)), "of shape"),
        (np.full(4, 0.5), "those of each state must sum to 1"),
        (np.array([1.5, -0.5]), "0 or more"),
        (np.array([np.nan, 1.0]), "not probabilities"),
        (torch.tensor([0.6 + 0j, 0.8]), "must be real"),
    ],
)
def test_invalid_probabilities_are_refused(p, message):
    with pytest.raises(ConfigError, match=message):
        porter_thomas(p)


def test_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="unknown field 'Real'; choose one of real, complex"):
        porter_thomas(np.full(4, 0.25), "Real")
