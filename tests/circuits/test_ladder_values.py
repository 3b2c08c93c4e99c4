"""Probabilities and gradients of every route compared with PennyLane."""

import math

import numpy as np
import pennylane as qml
import pytest
import torch

from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities

ROUTES = {
    "dispatch": probabilities,
    "fold": fold_probabilities,
    "groups": group_probabilities,
    "gates": lambda angles: gate_probabilities(Ansatz("ry_ladder", angles.shape[1], len(angles)), angles),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@every_route
@pytest.mark.parametrize("n_qubits", range(1, 11))
def test_values_and_gradients_equal_those_of_pennylane(route, n_qubits):
    if route is fold_probabilities and n_qubits == 1:
        pytest.skip("a single qubit cannot be folded")
    n_layers = 8 if n_qubits <= 6 else 2

    @qml.qnode(qml.device("default.qubit", wires=n_qubits), interface="torch", diff_method="backprop")
    def circuit(angles):
        for layer in range(n_layers):
            for wire in range(n_qubits):
                qml.RY(angles[layer, wire], wires=wire)
            for wire in range(n_qubits - 1):
                qml.CNOT(wires=[wire, wire + 1])
        return qml.probs(wires=range(n_qubits))

    random = np.random.default_rng(n_qubits)
    angles = torch.tensor(random.uniform(-math.pi, math.pi, (n_layers, n_qubits)), requires_grad=True)
    weights = torch.tensor(random.normal(size=2**n_qubits))
    theirs, ours = circuit(angles), route(angles)
    gradients = [torch.autograd.grad(p @ weights, angles)[0] for p in (theirs, ours)]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)
