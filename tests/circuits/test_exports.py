"""Circuits in PennyLane, Qiskit and OpenQASM 3: equal states, probabilities and gradients."""

import math

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import qasm3
from qiskit.quantum_info import Statevector

from circuits import ANSATZE
from circuits import random_angles as random_array
from qpeft.circuits import Ansatz, gate_probabilities, to_openqasm, to_pennylane, to_qiskit
from qpeft.circuits.reference import gate_evolve
from qpeft.errors import ConfigError
from qpeft_lab.cli.circuits import depth, transpiled_sizes

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))
every_ansatz = pytest.mark.parametrize("name", ANSATZE)


def random_angles(ansatz, *batch, scale=math.pi):
    return torch.from_numpy(random_array(ansatz, *batch, scale=scale))


# PennyLane


def state_of(ansatz, wires=None):
    circuit = to_pennylane(ansatz)

    @qml.qnode(qml.device("default.qubit", wires=wires or ansatz.n_qubits))
    def run(angles):
        circuit(angles, wires)
        return qml.state()

    return run


@every_ansatz
@given(size=sizes)
@settings(max_examples=8)
def test_states_in_pennylane_equal_those_of_the_gates(name, size):
    """With signs and phases, so that no rotation is turned the other way round."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz)
    found, expected = state_of(ansatz)(angles), gate_evolve(ansatz, angles)[:, 0].to(torch.complex128)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_wires_have_any_labels_in_any_order():
    ansatz = Ansatz("ry_ladder", 3, 2)
    angles = random_angles(ansatz)
    expected = gate_evolve(ansatz, angles)[:, 0].to(torch.complex128)
    torch.testing.assert_close(state_of(ansatz, ["b", 7, "a"])(angles), expected, atol=1e-12, rtol=0)
    circuit = to_pennylane(ansatz)

    @qml.qnode(qml.device("default.qubit", wires=3))
    def backwards(theta):
        circuit(theta, [2, 1, 0])
        return qml.state()

    swapped = expected.reshape(2, 2, 2).permute(2, 1, 0).flatten()
    torch.testing.assert_close(backwards(angles), swapped, atol=1e-12, rtol=0)
    assert (swapped - expected).abs().max() > 0.01


# Qiskit


@every_ansatz
@given(size=sizes)
@settings(max_examples=8)
def test_states_in_qiskit_equal_those_of_the_gates(name, size):
    """With signs and phases; Qiskit counts qubit 0 as the least significant bit."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz)
    found = Statevector(to_qiskit(ansatz, angles).reverse_bits()).data
    np.testing.assert_allclose(found, gate_evolve(ansatz, angles)[:, 0].numpy(), atol=1e-12)


@every_ansatz
def test_free_parameters_are_the_angles_in_row_major_order(name):
    """More than ten, whose names do not sort by index."""
    ansatz = Ansatz(name, 3, 4)
    angles = random_angles(ansatz)
    circuit = to_qiskit(ansatz)
    assert [p.name for p in circuit.parameters] == [f"theta[{k}]" for k in range(ansatz.n_angles)]
    bound = circuit.assign_parameters(angles.flatten().numpy())
    found = Statevector(bound.reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


# size


@every_ansatz
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 5)))
@settings(max_examples=20)
def test_depth_equals_that_of_qiskit(name, size):
    ansatz = Ansatz(name, *size)
    assert depth(ansatz) == to_qiskit(ansatz).depth()


def test_ring_needs_swaps_on_a_line():
    """A swap is three CNOTs; on all-to-all qubits the ring is what it was."""
    sizes = transpiled_sizes(Ansatz("square", 6, 2))
    assert sizes["all-to-all"]["two_qubit_gates"] == 2 * 6
    assert sizes["line"]["two_qubit_gates"] > 2 * 6
    assert sizes["line"]["depth"] > sizes["all-to-all"]["depth"]


# OpenQASM


def test_openqasm_of_a_small_circuit():
    assert (
        to_openqasm(Ansatz("ry_ladder", 2, 1), [[0.5, -1e-07]])
        == """\
OPENQASM 3.0;
include "stdgates.inc";
// ansatz ry_ladder with 2 qubits and 1 layers, angles in radians
// q[0] is the most significant bit of a basis index
qubit[2] q;
ry(0.5) q[0];
ry(-1e-07) q[1];
cx q[0], q[1];
"""
    )


@every_ansatz
@given(size=st.tuples(st.integers(1, 4), st.integers(1, 2)), scale=st.sampled_from([math.pi, 1e-3, 1e-12, 1e5]))
@settings(max_examples=6)
def test_qiskit_reads_openqasm_without_loss_of_precision(name, size, scale):
    """Whatever the size of the angles: no digit is lost on the way through the text."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz, scale=scale)
    read = qasm3.loads(to_openqasm(ansatz, angles))
    found = Statevector(read.reverse_bits()).data
    np.testing.assert_allclose(found, gate_evolve(ansatz, angles)[:, 0].numpy(), atol=1e-9 if scale > 10 else 1e-12)


@every_ansatz
def test_free_angles_are_openqasm_inputs_named_by_index(name):
    ansatz = Ansatz(name, 3, 2)
    angles = random_angles(ansatz)
    read = qasm3.loads(to_openqasm(ansatz))
    values = {f"theta_{'_'.join(map(str, slot))}": angles[slot].item() for slot in np.ndindex(ansatz.angle_shape)}
    assert {p.name for p in read.parameters} == set(values)
    found = Statevector(read.assign_parameters(values).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


LADDER = Ansatz("ry_ladder", 3, 2)


@pytest.mark.parametrize("angles", [torch.zeros(6), torch.full((2, 3), math.nan)], ids=["shape", "NaN"])
def test_qiskit_export_refuses_angles(angles):
    with pytest.raises(ConfigError):
        to_qiskit(LADDER, angles)


@pytest.mark.parametrize(
    "arguments",
    [
        *((torch.zeros(shape),) for shape in ((2,), (3, 2), (4, 1, 2, 3), ())),
        *((torch.zeros(2, 3), wires) for wires in ([0, 1], range(4))),
    ],
    ids=str,
)
def test_pennylane_circuit_refuses_angles_and_wires_of_other_numbers(arguments):
    with pytest.raises(ConfigError):
        to_pennylane(LADDER)(*arguments)
