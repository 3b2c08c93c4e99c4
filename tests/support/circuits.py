"""Random angles, and independent simulations of circuits for the tests of circuits and backends."""

import math

import numpy as np
import pytest
import torch

from qpeft.circuits import Gate, to_pennylane
from qpeft.circuits.convert import fixed_ansatz
from qpeft.circuits.reference import gate_evolve, gate_probabilities

ANSATZE = ("ry_ladder", "two_design", "square", "qaa", "rxyz")


def _turn(name, wire, slot, scale=1.0, shift=0.0):
    return Gate(name, (wire,), (slot,), scale, shift)


def _rzz(a, b, slot, scale=1.0):
    return [
        Gate("cx", (a, b)),
        _turn("rz", b, slot, scale),
        Gate("cx", (a, b)),
    ]


_PLUS = [Gate("ry", (wire,), shift=math.pi / 2) for wire in range(3)]
_SHARED = {  # circuits of three qubits whose angles turn several gates, or a multiple of the angle
    "qaoa": [
        *_PLUS,
        *_rzz(0, 1, 0), *_rzz(1, 2, 0), *_rzz(2, 0, 0), *(_turn("rx", w, 1, 2.0) for w in range(3)),
        *_rzz(0, 1, 2), *_rzz(1, 2, 2), *_rzz(2, 0, 2), *(_turn("rx", w, 3, 2.0) for w in range(3)),
    ],
    "iqp": [
        *_PLUS,
        *(_turn("rz", w, w) for w in range(3)), *_rzz(0, 1, 3), *_rzz(1, 2, 3), *_rzz(0, 2, 4, -2.0),
        *_PLUS,
    ],
    "scaled": [
        _turn("ry", 0, 0, 2.0), _turn("rx", 1, 1, -0.5, 0.3), _turn("ry", 2, 2, 0.25, -1.0),
        Gate("cx", (0, 1)), Gate("cz", (1, 2)), _turn("rx", 2, 3, 3.0), _turn("ry", 1, 4, -1.0),
    ],
    "tied layers": 3 * [*(_turn("ry", w, w) for w in range(3)), Gate("cx", (0, 1)), Gate("cx", (1, 2)),],
    "one angle": [
        *_PLUS, _turn("rx", 0, 0), _turn("rz", 1, 0, 2.0), Gate("cx", (0, 2)), _turn("ry", 2, 0, -0.7),
    ],
    "brick": [
        *(_turn("ry", w, 0) for w in range(3)), Gate("cz", (0, 1)), _turn("rx", 0, 1), _turn("rx", 1, 1),
        Gate("cz", (1, 2)), _turn("ry", 1, 2), _turn("ry", 2, 2, -1.0),
    ],
}  # fmt: skip
SHARED = {
    name: fixed_ansatz(
        name,
        3,
        (1 + max(gate.slot[0] for gate in gates if gate.slot),),
        gates,
    )
    for name, gates in _SHARED.items()
}


def random_angles(ansatz, *batch, seed=0, scale=math.pi):
    """float64 (*batch, *angle_shape), uniform on [-scale, scale)."""
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-scale, scale, (*batch, *ansatz.angle_shape))
    )


def value_and_gradient(run, angles, weights):
    """`run(angles)`, and the gradient of its sum with weights."""
    at = angles.clone().requires_grad_()
    value = run(at)
    return value.detach(), torch.autograd.grad((value * weights).sum(), at)[0]


def exact(ansatz, angles):
    """Probabilities (B, D) by the gate-by-gate simulator, from an array (B, *angle_shape)."""
    return np.stack([gate_probabilities(ansatz, each).numpy() for each in torch.from_numpy(angles)])


def by_pennylane(ansatz):
    """Its probabilities as a function of the angles, by PennyLane's simulator and autograd."""
    qml = pytest.importorskip("pennylane")
    queue = to_pennylane(ansatz)

    @qml.qnode(
        qml.device("default.qubit", wires=ansatz.n_qubits),
        interface="torch",
        diff_method="backprop",
    )
    def run(angles):
        queue(angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return run


def dense_two_design(angles, n_qubits, n_layers, signs=None):
    """The matrix (D, D) of `two_design`, from gates as full matrices; `signs` (2L, D) replace the
    CZ gates.
    """
    u = np.eye(2**n_qubits)
    index = np.arange(2**n_qubits)
    angles = iter(angles)

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
            diagonal = diagonal * (
                1 - 2 * ((index >> (n_qubits - 1 - i)) & (index >> (n_qubits - 1 - j)) & 1)
            )
        u = diagonal[:, None] * u
        rotate([wire for pair in pairs for wire in pair])
    return u


def gate_expectations(ansatz, angles, x):
    """<Z> of every wire, (T, N), after amplitude embedding of x (T, d): padded with zeros, over
    max(||x||, 1e-8).
    """
    padded = torch.nn.functional.pad(x, (0, 2**ansatz.n_qubits - x.shape[-1]))
    initial = padded / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)  # (T, D)
    final = gate_evolve(ansatz, angles, initial.mT)  # (D, T)
    p = final.abs().square().mT.unflatten(-1, (2,) * ansatz.n_qubits)  # (T, 2, ..., 2)
    # the probabilities (T, 2) of both values of each wire
    of_wires = [p.movedim(wire, 1).reshape(len(p), 2, -1).sum(2) for wire in range(1, p.ndim)]
    return torch.stack([of_wire[:, 0] - of_wire[:, 1] for of_wire in of_wires], -1)
