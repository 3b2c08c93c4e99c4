"""An ansatz as a Qiskit circuit, against the gates of qpeft; its depth, and its size on devices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Statevector

from qpeft.circuits import Ansatz
from qpeft.circuits.exports import transpiled_sizes
from qpeft.circuits.gates import gate_probabilities, gate_state
from qpeft.errors import ConfigError

NAMES = ("ry_ladder", "two_design", "square", "qaa", "rxyz")
sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))
every_ansatz = pytest.mark.parametrize("name", NAMES)


def random_angles(ansatz):
    return math.pi * (2 * torch.rand(ansatz.angle_shape, dtype=torch.float64) - 1)


@every_ansatz
@given(size=sizes)
@settings(max_examples=8)
def test_states_are_those_of_the_gates(name, size):
    """With signs and phases; Qiskit counts qubit 0 as the least significant bit."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz)
    found = Statevector(ansatz.to_qiskit(angles).reverse_bits()).data
    np.testing.assert_allclose(found, gate_state(ansatz, angles).numpy(), atol=1e-12)


def test_wire_i_is_qubit_i():
    """A flip of the first wire alone: qubit 0, Qiskit's last letter."""
    angles = torch.tensor([[math.pi, 0, 0]], dtype=torch.float64)
    state = Statevector(ansatz_without_ladder(angles))
    assert state.probabilities_dict(decimals=9) == {"001": 1.0}


def ansatz_without_ladder(angles):
    circuit = Ansatz("ry_ladder", 3, 1).to_qiskit(angles)
    circuit.data = [one for one in circuit.data if one.operation.name == "ry"]
    return circuit


@every_ansatz
def test_free_parameters_are_the_angles_in_row_major_order(name):
    """Of more than ten, whose names do not sort as their numbers do."""
    ansatz = Ansatz(name, 3, 4)
    angles = random_angles(ansatz)
    circuit = ansatz.to_qiskit()
    assert [p.name for p in circuit.parameters] == [f"theta[{k}]" for k in range(ansatz.n_angles)]
    bound = circuit.assign_parameters(angles.flatten().numpy())
    found = Statevector(bound.reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


def test_angles_may_be_lists_arrays_or_tensors_under_training():
    ansatz = Ansatz("ry_ladder", 2, 1)
    angles = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    expected = ansatz.to_qiskit(angles)
    for given_as in (angles.tolist(), angles.numpy(), angles.clone().requires_grad_()):
        assert ansatz.to_qiskit(given_as) == expected


@pytest.mark.parametrize("method", ["to_qiskit", "to_openqasm"])
@pytest.mark.parametrize(
    ("angles", "message"),
    [
        (torch.zeros(3, 2), r"ry_ladder on 3 qubits with 2 layers has angles of shape \(2, 3\), got \(3, 2\)"),
        (torch.zeros(6), r"has angles of shape \(2, 3\), got \(6,\)"),
        (torch.full((2, 3), math.nan), "an angle is NaN or infinite"),
        (torch.full((2, 3), math.inf), "an angle is NaN or infinite"),
    ],
)
def test_unusable_angles_are_refused(method, angles, message):
    with pytest.raises(ConfigError, match=message):
        getattr(Ansatz("ry_ladder", 3, 2), method)(angles)


# size


@every_ansatz
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 5)))
@settings(max_examples=20)
def test_depth_is_qiskits(name, size):
    ansatz = Ansatz(name, *size)
    assert ansatz.depth == ansatz.to_qiskit().depth()


def test_a_ladder_needs_no_more_than_a_line():
    """It joins neighbours only, and a line lies in a heavy-hex lattice."""
    sizes = transpiled_sizes(Ansatz("ry_ladder", 6, 3))
    assert list(sizes) == ["all-to-all", "line", "heavy-hex"]
    assert sizes["line"] == sizes["all-to-all"] == sizes["heavy-hex"]
    assert sizes["line"]["two_qubit_gates"] == 3 * 5


def test_a_ring_needs_swaps_on_a_line():
    """A swap is three CNOTs; on all-to-all qubits the ring is what it was."""
    sizes = transpiled_sizes(Ansatz("square", 6, 2))
    assert sizes["all-to-all"]["two_qubit_gates"] == 2 * 6
    assert sizes["line"]["two_qubit_gates"] > 2 * 6
    assert sizes["line"]["depth"] > sizes["all-to-all"]["depth"]


def test_a_lattice_grows_with_the_circuit():
    """120 qubits do not fit the 115 of the usual one."""
    sizes = transpiled_sizes(Ansatz("ry_ladder", 120, 1))
    assert sizes["heavy-hex"]["two_qubit_gates"] >= 119
