"""Meyer and Wallach's Q: known states, PennyLane's purity, random states, invalid input."""

import json

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz
from qpeft.diagnostics import haar_states, meyer_wallach, random_states
from qpeft.errors import ConfigError


def _state(n_qubits, indices, dtype=torch.float64):
    state = torch.zeros(2**n_qubits, dtype=dtype)
    state[list(indices)] = len(indices) ** -0.5
    return state


KNOWN = {
    "product": (_state(3, [5]), 0),
    "GHZ": (_state(4, [0, 15]), 1),
    "W": (_state(3, [1, 2, 4]), 8 / 9),
    "Bell pair and a third": (_state(3, [0, 6]), 2 / 3),
    "complex GHZ": (_state(3, [0, 7], torch.complex64) * 1j, 1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_q_of_known_states(name):
    state, expected = KNOWN[name]
    result = meyer_wallach(state)
    assert result.mean == pytest.approx(expected, abs=1e-6)
    assert result.error is None
    assert result.field == ("complex" if "complex" in name else "real")


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from(["real", "complex"]), st.integers(0, 99))
def test_q_equals_pennylane_purities(n_qubits, samples, field, seed):
    states = haar_states(samples, n_qubits, field, seed)
    purities = [
        qml.math.purity(qml.math.reduce_statevector(states.numpy().astype(complex), [wire]), [0])
        for wire in range(n_qubits)
    ]
    result = meyer_wallach(states)
    assert result.mean == pytest.approx(2 * (1 - np.mean(purities)), abs=1e-12)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.sentence


@pytest.mark.parametrize(("field", "expected"), [("real", 0.98450), ("complex", 0.98833)])
def test_mean_of_random_states(field, expected):
    result = meyer_wallach(haar_states(20_000, 8, field))
    assert result.expected == pytest.approx(expected, abs=5e-6)
    assert result.mean == pytest.approx(expected, abs=4 * result.error)
    assert result.error < 1e-4


def test_eight_layers_entangle_less_than_random_states():
    result = meyer_wallach(random_states(Ansatz("ry_ladder", 8, 8), 300))
    assert result.mean == pytest.approx(0.963, abs=4 * result.error)
    assert "less entangled than in random states" in result.sentence
    assert "as in random states" in meyer_wallach(haar_states(50, 6, seed=1)).sentence
    assert "more entangled" in meyer_wallach(torch.stack([KNOWN["GHZ"][0], KNOWN["GHZ"][0]])).sentence


def test_single_qubit_is_not_entangled():
    assert meyer_wallach(haar_states(3, 1)).mean == pytest.approx(0, abs=1e-12)
    assert "cannot be entangled" in meyer_wallach(haar_states(3, 1)).sentence


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.ones(3, 6), r"shape \(states, 2\*\*n_qubits\) or \(2\*\*n_qubits,\), got \(3, 6\)"),
        (torch.ones(2, 1), r"got \(2, 1\)"),
        (torch.zeros(0, 4), r"got \(0, 4\)"),
        (torch.tensor(1.0), r"got \(\)"),
        (torch.full((4,), 0.25), "give amplitudes, not probabilities"),
        (torch.tensor([torch.nan, 1.0]), "norm 1"),
    ],
)
def test_invalid_state_is_refused(states, message):
    with pytest.raises(ConfigError, match=message):
        meyer_wallach(states)
