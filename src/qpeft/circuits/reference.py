"""The gate-by-gate reference of the simulator, for tests: every gate is one step of plain autograd,
and slow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz
from qpeft.circuits.simulate import squared

_TURNED = {  # cos and sin of half the angle, and the states with the wire at 0 and at 1
    "rx": lambda c, s, zero, one: (c * zero - 1j * s * one, c * one - 1j * s * zero),
    "ry": lambda c, s, zero, one: (c * zero - s * one, s * zero + c * one),
    "rz": lambda c, s, zero, one: ((c - 1j * s) * zero, (c + 1j * s) * one),
}


def gate_evolve(ansatz: Ansatz, angles: Tensor, start: Tensor | None = None) -> Tensor:
    """Final states (2**N, K) from the K states `start` (2**N, K), `|0...0>` by default; complex
    after an RX or RZ.
    """
    start = torch.eye(2**ansatz.n_qubits, 1).to(angles) if start is None else start
    psi = start.unflatten(0, (2,) * ansatz.n_qubits)  # one axis per wire, wire 0 first
    for gate in ansatz.gates():
        axes = tuple(range(len(gate.wires)))
        zero, one = psi.movedim(gate.wires, axes)  # of the first wire
        if gate.name in _TURNED:
            angle = gate.shift if gate.slot is None else gate.scale * angles[gate.slot] + gate.shift
            half = torch.as_tensor(angle, dtype=angles.dtype, device=angles.device) / 2
            parts = _TURNED[gate.name](half.cos(), half.sin(), zero, one)
        else:
            parts = zero, one.flip(0) if gate.name == "cx" else torch.stack([one[0], -one[1]])
        psi = torch.stack(parts).movedim(axes, gate.wires)
    return psi.reshape(start.shape)


def gate_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """`exact_probabilities` (2**N,) of `ansatz` at `angles`, gate by gate, with derivatives of
    every order.

    Raises as `exact_probabilities`.
    """
    return squared(gate_evolve(ansatz, angles)[:, 0])
