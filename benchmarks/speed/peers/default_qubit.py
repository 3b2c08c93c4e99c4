"""PennyLane's default.qubit with torch's own backpropagation."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.case import Task


def gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    circuit = _probabilities(ansatz)
    return lambda: torch.autograd.grad(p := circuit(angles), angles, weights.to(p.dtype))


def forward(ansatz: Ansatz, angles: Tensor) -> Task:
    circuit, fixed = _probabilities(ansatz), angles.detach()
    return lambda: (circuit(fixed),)


def _probabilities(ansatz: Ansatz):
    import pennylane as qml

    gates = ansatz.to_pennylane()

    @qml.qnode(qml.device("default.qubit", wires=ansatz.n_qubits), interface="torch", diff_method="backprop")
    def circuit(angles):
        gates(angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return circuit
