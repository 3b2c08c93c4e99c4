"""Probabilities and gradients against numbers and programs that are not ours."""

import math

import numpy as np
import pytest
import torch

from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.kron import ladder_source
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities

ROUTES = {
    "dispatch": probabilities,
    "fold": fold_probabilities,
    "groups": group_probabilities,
    "gates": lambda angles: gate_probabilities(Ansatz("ry_ladder", angles.shape[1], len(angles)), angles),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)

# angles 0.1 * (1 + l*N + i), loss = sum_j j * p[j]; from PennyLane's default.qubit
RECORDED = {
    (1, 2): (
        [0.9875602675803, 0.009941815058742, 2.489602063712e-05, 0.002473021340350],
        [[0.14875511415, 0.098838405827]],
        0.01741067112106629,
    ),
    (2, 3): (
        [
            *[0.726093408258, 0.150978517278, 0.035667085345, 0.041628921701],
            *[0.001235278113, 0.007646206691, 0.004691972690, 0.032058609925],
        ],
        [[0.393741941346, 0.242257948909, 0.376504916380], [1.257779866672, 0.570086779630, 0.283371840341]],
        0.642933704590986,
    ),
    (3, 4): (
        [
            *[0.038450618405, 0.122532896639, 0.190518649973, 0.039214517647],
            *[0.002189839110, 0.197450270514, 0.050608009755, 0.006140027074],
            *[0.003456150387, 0.005815083660, 0.229995993310, 0.005383688166],
            *[0.030389469090, 0.027030486745, 0.042816919430, 0.008007380093],
        ],
        [
            [0.989883421003, 0.678683769528, 0.691529783531, 0.203111436971],
            [2.108913885316, 1.830555508945, 0.021698049571, 0.113565773649],
            [3.450519245875, 0.727366311284, 0.127012501149, -0.035190023726],
        ],
        5.8386356957441805,
    ),
}


def spec_angles(n_layers, n_qubits):
    return 0.1 * torch.arange(1, 1 + n_layers * n_qubits, dtype=torch.float64).view(n_layers, n_qubits)


@every_route
@pytest.mark.parametrize("shape", RECORDED, ids=str)
def test_recorded_values_and_gradients(route, shape):
    p_expected, gradient_expected, loss_expected = RECORDED[shape]
    angles = spec_angles(*shape).requires_grad_()
    p = route(angles)
    loss = p @ torch.arange(len(p), dtype=p.dtype)
    (gradient,) = torch.autograd.grad(loss, angles)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(p.detach(), torch.tensor(p_expected, dtype=p.dtype), **close)
    torch.testing.assert_close(gradient, torch.tensor(gradient_expected, dtype=p.dtype), **close)
    assert loss.item() == pytest.approx(loss_expected, abs=1e-10)


@pytest.mark.parametrize("n_qubits", range(1, 9))
def test_ladder_gather_is_the_loop_over_cnots(n_qubits):
    labels = list(range(2**n_qubits))
    for wire in range(n_qubits - 1):
        control, target = 1 << (n_qubits - 1 - wire), 1 << (n_qubits - 2 - wire)
        labels = [labels[index ^ target] if index & control else labels[index] for index in range(len(labels))]
    assert ladder_source(n_qubits).tolist() == labels


@pytest.mark.parametrize("n_qubits", range(1, 11))
def test_values_and_gradients_agree_with_pennylane(n_qubits):
    qml = pytest.importorskip("pennylane")
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
    theirs, ours = circuit(angles), probabilities(angles)
    gradients = [torch.autograd.grad(p @ weights, angles)[0] for p in (theirs, ours)]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)
