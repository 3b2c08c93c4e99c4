"""Qiskit's own state vector; no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.case import Task


def forward(ansatz: Ansatz, angles: Tensor) -> Task:
    from qiskit.quantum_info import Statevector

    circuit = ansatz.to_qiskit(angles.detach()).reverse_bits()  # wire 0 is the most significant bit
    return lambda: (torch.as_tensor(Statevector(circuit).probabilities()),)
