"""Random angles, and independent simulations of circuits for the tests of circuits and backends."""

import math

import numpy as np
import torch

from qpeft.circuits.gates import gate_probabilities

ANSATZE = ("ry_ladder", "two_design", "square", "qaa", "rxyz")


def random_angles(ansatz, *batch, seed=0, scale=math.pi):
    """float64 array (*batch, *angle_shape), uniform on [-scale, scale)."""
    return np.random.default_rng(seed).uniform(-scale, scale, (*batch, *ansatz.angle_shape))


def exact(ansatz, angles):
    """Probabilities (B, D) by the gate-by-gate simulator, from an array (B, *angle_shape)."""
    return np.stack([gate_probabilities(ansatz, each).numpy() for each in torch.from_numpy(angles)])


def dense_two_design(angles, n_qubits, n_layers, signs=None):
    """The matrix (D, D) of `two_design`, from gates as full matrices; `signs` (2L, D) replace the CZ gates."""
    u, index, angles = np.eye(2**n_qubits), np.arange(2**n_qubits), iter(angles)

    def rotate(wires):
        nonlocal u
        for wire, t in zip(wires, angles, strict=False):
            ry = np.array([[np.cos(t / 2), -np.sin(t / 2)], [np.sin(t / 2), np.cos(t / 2)]])
            u = np.kron(np.kron(np.eye(2**wire), ry), np.eye(2 ** (n_qubits - wire - 1))) @ u

    rotate(range(n_qubits))
    for step in range(2 * n_layers):
        pairs = [(wire, wire + 1) for wire in range(step % 2, n_qubits - 1, 2)]
        diagonal = np.ones(len(index)) if signs is None else signs[step]
        for i, j in pairs if signs is None else ():
            diagonal = diagonal * (1 - 2 * ((index >> (n_qubits - 1 - i)) & (index >> (n_qubits - 1 - j)) & 1))
        u = diagonal[:, None] * u
        rotate([wire for pair in pairs for wire in pair])
    return u
