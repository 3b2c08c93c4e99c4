"""PennyLane's lightning.qubit; its adjoint method takes the weighted sum as the mean of a diagonal observable."""

from __future__ import annotations

import torch
from scipy.sparse import diags
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.case import Task


def gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    import pennylane as qml

    gates = ansatz.to_pennylane()
    observable = qml.SparseHamiltonian(diags(weights.numpy()).tocsr(), wires=range(ansatz.n_qubits))

    @qml.qnode(qml.device("lightning.qubit", wires=ansatz.n_qubits), interface="torch", diff_method="adjoint")
    def circuit(angles):
        gates(angles)
        return qml.expval(observable)

    return lambda: torch.autograd.grad(circuit(angles), angles)


def forward(ansatz: Ansatz, angles: Tensor) -> Task:
    import pennylane as qml

    gates, fixed = ansatz.to_pennylane(), angles.detach().numpy()

    @qml.qnode(qml.device("lightning.qubit", wires=ansatz.n_qubits), diff_method=None)
    def circuit(angles):
        gates(angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return lambda: (torch.as_tensor(circuit(fixed)),)
