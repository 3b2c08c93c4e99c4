"""Many states at once against the gate-by-gate simulator, PennyLane, and the gradient of the single route."""

import math

import numpy as np
import pennylane as qml
import pytest
import torch

from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_state
from qpeft.circuits.ladder import ladder_states


def _angles(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-math.pi, math.pi, shape))


@pytest.mark.parametrize("n_qubits", range(1, 8))
@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_states_equal_those_of_the_gates(n_qubits, n_layers):
    angles = _angles(3, n_layers, n_qubits)
    expected = [gate_state(Ansatz("ry_ladder", n_qubits, n_layers), each) for each in angles]
    torch.testing.assert_close(ladder_states(angles), torch.stack(expected), rtol=0, atol=1e-13)


def test_state_equals_that_of_pennylane():
    angles = _angles(1, 3, 4)

    @qml.qnode(qml.device("default.qubit", wires=4))
    def circuit():
        for layer in angles[0].tolist():
            for wire, angle in enumerate(layer):
                qml.RY(angle, wires=wire)
            for wire in range(3):
                qml.CNOT([wire, wire + 1])
        return qml.state()

    np.testing.assert_allclose(ladder_states(angles)[0].numpy(), circuit(), atol=1e-13)


def test_gradients_equal_those_of_the_adjoint_route():
    angles, weights = _angles(4, 3, 5).requires_grad_(), torch.randn(4, 32, dtype=torch.float64)
    (found,) = torch.autograd.grad(ladder_states(angles).square(), angles, weights)
    for each, weight, slope in zip(angles, weights, found, strict=True):
        (expected,) = torch.autograd.grad(probabilities(each), each, weight)
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-13)


def test_dtype_is_that_of_the_angles():
    assert ladder_states(_angles(2, 2, 3).float()).dtype == torch.float32
