"""Circuits in PennyLane, Qiskit, OpenQASM 3 and Python files: equal states, probabilities and gradients."""

import math
import subprocess
import sys

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
from qpeft.circuits import Ansatz
from qpeft.circuits.exports import to_python, transpiled_sizes
from qpeft.circuits.gates import gate_probabilities, gate_state
from qpeft.errors import ConfigError

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))
every_ansatz = pytest.mark.parametrize("name", ANSATZE)


def random_angles(ansatz, *batch, scale=math.pi):
    return torch.from_numpy(random_array(ansatz, *batch, scale=scale))


# PennyLane


def state_of(ansatz, wires=None):
    circuit = ansatz.to_pennylane()

    @qml.qnode(qml.device("default.qubit", wires=wires or ansatz.n_qubits))
    def run(angles):
        circuit(angles, wires)
        return qml.state()

    return run


def probabilities_of(ansatz):
    circuit = ansatz.to_pennylane()

    @qml.qnode(qml.device("default.qubit"))
    def run(angles):
        circuit(angles)
        return qml.probs(range(ansatz.n_qubits))

    return run


@every_ansatz
@given(size=sizes)
@settings(max_examples=8)
def test_states_in_pennylane_equal_those_of_the_gates(name, size):
    """With signs and phases, so that no rotation is turned the other way round."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz)
    found, expected = state_of(ansatz)(angles), gate_state(ansatz, angles).to(torch.complex128)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@every_ansatz
def test_pennylane_circuit_accepts_a_batch_of_angles(name):
    ansatz = Ansatz(name, 3, 2)
    angles, run = random_angles(ansatz, 4), probabilities_of(ansatz)
    one_by_one = torch.stack([gate_probabilities(ansatz, each) for each in angles])
    torch.testing.assert_close(run(angles), one_by_one, atol=1e-12, rtol=0)


@every_ansatz
def test_pennylane_gradients_in_torch_and_autograd(name):
    ansatz = Ansatz(name, 3, 2)
    angles, weights = random_angles(ansatz).requires_grad_(), torch.arange(8, dtype=torch.float64)
    run = probabilities_of(ansatz)
    (expected,) = torch.autograd.grad(weights @ gate_probabilities(ansatz, angles), angles)
    (by_torch,) = torch.autograd.grad(weights @ run(angles), angles)
    torch.testing.assert_close(by_torch, expected, atol=1e-12, rtol=0)
    variable = qml.numpy.array(angles.detach().numpy(), requires_grad=True)
    by_autograd = qml.grad(lambda theta: qml.numpy.dot(weights.numpy(), run(theta)))(variable)
    torch.testing.assert_close(torch.from_numpy(by_autograd), expected, atol=1e-12, rtol=0)


def test_wires_have_any_labels_in_any_order():
    ansatz = Ansatz("ry_ladder", 3, 2)
    angles = random_angles(ansatz)
    expected = gate_state(ansatz, angles).to(torch.complex128)
    torch.testing.assert_close(state_of(ansatz, ["b", 7, "a"])(angles), expected, atol=1e-12, rtol=0)
    circuit = ansatz.to_pennylane()

    @qml.qnode(qml.device("default.qubit", wires=3))
    def backwards(theta):
        circuit(theta, [2, 1, 0])
        return qml.state()

    swapped = expected.reshape(2, 2, 2).permute(2, 1, 0).flatten()
    torch.testing.assert_close(backwards(angles), swapped, atol=1e-12, rtol=0)
    assert (swapped - expected).abs().max() > 0.01


def test_only_gates_are_queued():
    ansatz = Ansatz("rxyz", 2, 1)
    tape = qml.tape.make_qscript(ansatz.to_pennylane())(random_angles(ansatz))
    assert [op.name for op in tape.operations] == ["RX", "RX", "RY", "RY", "RZ", "RZ", "CNOT", "CNOT"]
    assert [tuple(op.wires) for op in tape.operations[-2:]] == [(0, 1), (1, 0)]
    assert tape.measurements == []


@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 1, 2, 3), (6,), ()])
def test_angles_of_another_shape_are_refused(shape):
    circuit = Ansatz("ry_ladder", 3, 2).to_pennylane()
    with pytest.raises(ConfigError, match=r"ry_ladder on 3 qubits with 2 layers has angles of shape \(2, 3\)"):
        circuit(torch.zeros(shape))


@pytest.mark.parametrize("wires", [[0, 1], range(4)])
def test_wrong_number_of_wires_is_refused(wires):
    with pytest.raises(ConfigError, match="3 qubits need as many wires"):
        Ansatz("ry_ladder", 3, 2).to_pennylane()(torch.zeros(2, 3), wires)


# Qiskit


@every_ansatz
@given(size=sizes)
@settings(max_examples=8)
def test_states_in_qiskit_equal_those_of_the_gates(name, size):
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
    """More than ten, whose names do not sort by index."""
    ansatz = Ansatz(name, 3, 4)
    angles = random_angles(ansatz)
    circuit = ansatz.to_qiskit()
    assert [p.name for p in circuit.parameters] == [f"theta[{k}]" for k in range(ansatz.n_angles)]
    bound = circuit.assign_parameters(angles.flatten().numpy())
    found = Statevector(bound.reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


def test_angles_are_lists_arrays_or_trained_tensors():
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
def test_depth_equals_that_of_qiskit(name, size):
    ansatz = Ansatz(name, *size)
    assert ansatz.depth == ansatz.to_qiskit().depth()


def test_ladder_needs_no_swaps_on_a_line():
    """It joins neighbours only, and a line lies in a heavy-hex lattice."""
    sizes = transpiled_sizes(Ansatz("ry_ladder", 6, 3))
    assert list(sizes) == ["all-to-all", "line", "heavy-hex"]
    assert sizes["line"] == sizes["all-to-all"] == sizes["heavy-hex"]
    assert sizes["line"]["two_qubit_gates"] == 3 * 5


def test_ring_needs_swaps_on_a_line():
    """A swap is three CNOTs; on all-to-all qubits the ring is what it was."""
    sizes = transpiled_sizes(Ansatz("square", 6, 2))
    assert sizes["all-to-all"]["two_qubit_gates"] == 2 * 6
    assert sizes["line"]["two_qubit_gates"] > 2 * 6
    assert sizes["line"]["depth"] > sizes["all-to-all"]["depth"]


def test_lattice_grows_with_the_circuit():
    """120 qubits do not fit the 115 of the usual one."""
    sizes = transpiled_sizes(Ansatz("ry_ladder", 120, 1))
    assert sizes["heavy-hex"]["two_qubit_gates"] >= 119


# OpenQASM


def test_openqasm_of_a_small_circuit():
    assert (
        Ansatz("ry_ladder", 2, 1).to_openqasm([[0.5, -1e-07]])
        == """\
OPENQASM 3.0;
include "stdgates.inc";
// ry_ladder, n_qubits=2, n_layers=1, angles in radians
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
    read = qasm3.loads(ansatz.to_openqasm(angles))
    found = Statevector(read.reverse_bits()).data
    np.testing.assert_allclose(found, gate_state(ansatz, angles).numpy(), atol=1e-9 if scale > 10 else 1e-12)


@every_ansatz
def test_free_angles_are_openqasm_inputs_named_by_index(name):
    ansatz = Ansatz(name, 3, 2)
    angles = random_angles(ansatz)
    read = qasm3.loads(ansatz.to_openqasm())
    values = {f"theta_{'_'.join(map(str, slot))}": angles[slot].item() for slot in np.ndindex(ansatz.angle_shape)}
    assert {p.name for p in read.parameters} == set(values)
    found = Statevector(read.assign_parameters(values).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


# Python files

every_library = pytest.mark.parametrize("library", ["pennylane", "qiskit"])


def namespace_of(text):
    namespace = {"__name__": "circuit"}
    exec(compile(text, "circuit.py", "exec"), namespace)
    return namespace


@every_library
@every_ansatz
def test_python_file_has_the_exact_probabilities(library, name):
    ansatz = Ansatz(name, 3, 2)
    angles = random_angles(ansatz)
    written = namespace_of(to_python(ansatz, library, angles))
    np.testing.assert_array_equal(written["ANGLES"], angles.numpy())
    found = written["probabilities"](written["ANGLES"])
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


@every_library
def test_python_file_with_free_angles(library):
    ansatz = Ansatz("ry_ladder", 3, 2)
    written = namespace_of(to_python(ansatz, library))
    assert "ANGLES" not in written
    angles = random_angles(ansatz)
    found = written["probabilities"](angles.numpy())
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


@pytest.mark.long
@every_library
def test_python_file_runs_without_qpeft(library, tmp_path):
    """As a program of its own it prints the probabilities."""
    ansatz = Ansatz("ry_ladder", 2, 2)
    angles = random_angles(ansatz)
    path = tmp_path / "circuit.py"
    path.write_text(to_python(ansatz, library, angles), encoding="utf-8")
    start = f"import sys, runpy; sys.modules['qpeft'] = None; runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    found = [float(word) for word in done.stdout.strip("[] \n").split()]
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-7)
