"""An ansatz as a PennyLane circuit, against the gates of qpeft and PennyLane's own template."""

import math
import subprocess
import sys

import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz
from qpeft.circuits.gates import gate_probabilities, gate_state
from qpeft.errors import ConfigError

NAMES = ("ry_ladder", "two_design", "square", "qaa", "rxyz")
sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))


def random_angles(ansatz, *batch):
    return math.pi * (2 * torch.rand(*batch, *ansatz.angle_shape, dtype=torch.float64) - 1)


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


@pytest.mark.parametrize("name", NAMES)
@given(size=sizes)
@settings(max_examples=8)
def test_states_are_those_of_the_gates(name, size):
    """With signs and phases, so that no rotation is turned the other way round."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz)
    found, expected = state_of(ansatz)(angles), gate_state(ansatz, angles).to(torch.complex128)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_angles_is_one_circuit(name):
    ansatz = Ansatz(name, 3, 2)
    angles, run = random_angles(ansatz, 4), probabilities_of(ansatz)
    one_by_one = torch.stack([gate_probabilities(ansatz, each) for each in angles])
    torch.testing.assert_close(run(angles), one_by_one, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_in_torch_and_autograd(name):
    ansatz = Ansatz(name, 3, 2)
    angles, weights = random_angles(ansatz).requires_grad_(), torch.arange(8, dtype=torch.float64)
    run = probabilities_of(ansatz)
    (expected,) = torch.autograd.grad(weights @ gate_probabilities(ansatz, angles), angles)
    (by_torch,) = torch.autograd.grad(weights @ run(angles), angles)
    torch.testing.assert_close(by_torch, expected, atol=1e-12, rtol=0)
    variable = qml.numpy.array(angles.detach().numpy(), requires_grad=True)
    by_autograd = qml.grad(lambda theta: qml.numpy.dot(weights.numpy(), run(theta)))(variable)
    torch.testing.assert_close(torch.from_numpy(by_autograd), expected, atol=1e-12, rtol=0)


def test_wires_may_have_any_labels_in_any_order():
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
def test_other_shapes_are_refused(shape):
    circuit = Ansatz("ry_ladder", 3, 2).to_pennylane()
    with pytest.raises(ConfigError, match=r"ry_ladder on 3 qubits with 2 layers has angles of shape \(2, 3\)"):
        circuit(torch.zeros(shape))


@pytest.mark.parametrize("wires", [[0, 1], range(4)])
def test_another_number_of_wires_is_refused(wires):
    with pytest.raises(ConfigError, match="3 qubits need as many wires"):
        Ansatz("ry_ladder", 3, 2).to_pennylane()(torch.zeros(2, 3), wires)


def test_without_pennylane_the_extra_is_named():
    code = """
import sys
sys.modules["pennylane"] = None
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError
try:
    Ansatz("ry_ladder", 3, 2).to_pennylane()
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "to_pennylane needs PennyLane: pip install pennylane"
