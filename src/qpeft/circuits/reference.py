"""The gate-by-gate reference of the simulator, for tests: every gate is one step of plain autograd,
and slow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz
from qpeft.circuits.simulate import squared

# the new amplitudes of a rotation, from cos and sin of half the angle and the amplitudes u with
# the wire at 0 and v with the wire at 1
_TURNED = {
    "rx": lambda c, s, u, v: (c * u - 1j * s * v, c * v - 1j * s * u),
    "ry": lambda c, s, u, v: (c * u - s * v, s * u + c * v),
    "rz": lambda c, s, u, v: ((c - 1j * s) * u, (c + 1j * s) * v),
}


def gate_evolve(ansatz: Ansatz, angles: Tensor, start: Tensor | None = None) -> Tensor:
    """Final states (2**N, K) from the K states `start` (2**N, K), `|0...0>` by default; complex
    after an RX or RZ.
    """
    start = torch.eye(2**ansatz.n_qubits, 1).to(angles) if start is None else start
    psi = start.unflatten(0, (2,) * ansatz.n_qubits)  # one axis per wire, wire 0 first
    for gate in ansatz.gates():
        axes = tuple(range(len(gate.wires)))
        u, v = psi.movedim(gate.wires, axes)  # the first wire at 0, and at 1
        if gate.name in _TURNED:
            angle = gate.shift if gate.slot is None else gate.scale * angles[gate.slot] + gate.shift
            half = torch.as_tensor(angle, dtype=angles.dtype, device=angles.device) / 2
            parts = _TURNED[gate.name](half.cos(), half.sin(), u, v)
        elif gate.name == "cx":
            parts = u, v.flip(0)
        else:  # cz
            parts = u, torch.stack([v[0], -v[1]])
        psi = torch.stack(parts).movedim(axes, gate.wires)
    return psi.reshape(start.shape)


def gate_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """`exact_probabilities` (2**N,) of `ansatz` at `angles`, radians, gate by gate, with derivatives of
    every order; in the dtype of the angles, float32 or float64.

    Raises as `exact_probabilities`.
    """
    return squared(gate_evolve(ansatz, angles)[:, 0])
