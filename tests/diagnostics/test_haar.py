"""Random states and the law of their probabilities: scipy's distributions, other samplers, known limits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qpeft.diagnostics import haar_states
from qpeft.diagnostics.haar import HaarLaw
from qpeft.errors import ConfigError

fields = st.sampled_from(["real", "complex"])
PARAMETER = {"real": 0.5, "complex": 1.0}


@given(fields, st.integers(2, 2**14), st.floats(0, 1))
def test_distribution_equals_the_beta_law_of_scipy(field, size, p):
    law = HaarLaw(field, size)
    beta = stats.beta(PARAMETER[field], PARAMETER[field] * (size - 1))
    assert law.cdf(np.array([p]))[0] == pytest.approx(beta.cdf(p), abs=1e-12)
    share = np.array([0.3])
    assert law.cdf(law.quantiles(share))[0] == pytest.approx(0.3, abs=1e-9)


def test_moments_equal_the_closed_forms_of_the_specification():
    for d in (2, 16, 256):
        real, complex_ = HaarLaw("real", d), HaarLaw("complex", d)
        assert real.ipr == pytest.approx(3 * d / (d + 2))
        assert complex_.ipr == pytest.approx(2 * d / (d + 1))
        assert real.entanglement == pytest.approx((d - 2) / (d + 2))
        assert complex_.entanglement == pytest.approx((d - 2) / (d + 1))
    d = 2**20
    assert HaarLaw("real", d).entropy == pytest.approx(np.log(d) - 0.7296, abs=1e-4)
    assert HaarLaw("complex", d).entropy == pytest.approx(np.log(d) - 0.4228, abs=1e-4)


@pytest.mark.parametrize("field", PARAMETER)
@pytest.mark.parametrize("size", [2, 8, 64])
def test_moments_equal_those_of_a_dirichlet_sample(field, size):
    p = np.random.default_rng(1).dirichlet([PARAMETER[field]] * size, 40_000)
    law = HaarLaw(field, size)
    ipr = size * (p**2).sum(1)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    for sample, mean, spread in ((ipr, law.ipr, law.ipr_spread), (entropy, law.entropy, law.entropy_spread)):
        assert sample.mean() == pytest.approx(mean, abs=4 * spread / 200)
        assert sample.std() == pytest.approx(spread, rel=0.04)


@pytest.mark.parametrize("field", PARAMETER)
@pytest.mark.parametrize("entries", [1, 3, 8])
def test_drawn_entries_have_the_joint_law_of_whole_states(field, entries):
    law = HaarLaw(field, 8)
    drawn = law.draw(20_000, entries, np.random.default_rng(2))
    assert drawn.shape == (20_000, entries)
    assert stats.kstest(drawn[:, 0], law.cdf).pvalue > 1e-3
    whole = np.random.default_rng(3).dirichlet([PARAMETER[field]] * 8, 20_000)[:, :entries].sum(1)
    assert stats.ks_2samp(drawn.sum(1), whole).pvalue > 1e-3 or entries == 8
    if entries == 8:
        np.testing.assert_allclose(drawn.sum(1), 1)


@pytest.mark.parametrize(("field", "dtype"), [("real", torch.float64), ("complex", torch.complex128)])
def test_haar_states_are_isotropic_unit_vectors(field, dtype):
    states = haar_states(5000, 3, field, seed=4)
    assert (states.shape, states.dtype) == ((5000, 8), dtype)
    torch.testing.assert_close(states.norm(dim=1), torch.ones(5000, dtype=torch.float64))
    along = states @ torch.full((8,), 8**-0.5, dtype=dtype)  # as likely as along a basis state
    assert stats.kstest(along.abs().square().numpy(), HaarLaw(field, 8).cdf).pvalue > 1e-3
    assert torch.equal(states, haar_states(5000, 3, field, seed=4))
    assert not torch.equal(states, haar_states(5000, 3, field, seed=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "samples must be an integer of at least 1, got 0"),
        ((3, 0), "n_qubits must be an integer of at least 1, got 0"),
        ((3, 2.5), r"n_qubits must be an integer of at least 1, got 2\.5"),
        ((3, 3, "quaternion"), "unknown field 'quaternion'; choose one of real, complex"),
        ((3, 3, "real", -1), "seed must be 0 or more, got -1"),
    ],
)
def test_invalid_sizes_and_fields_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        haar_states(*arguments)


def test_single_outcome_is_refused():
    with pytest.raises(ConfigError, match="at least 2 probabilities, got 1"):
        HaarLaw("real", 1)
