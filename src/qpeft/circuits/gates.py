"""Slow reference simulator: every gate of any ansatz is one step of plain autograd.

It is what the fast routes are tested against; use it for nothing larger than a test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz


def _ry(psi: Tensor, wires: tuple[int, ...], angle: Tensor) -> Tensor:
    zero, one = psi.movedim(wires[0], 0)
    c, s = torch.cos(angle / 2), torch.sin(angle / 2)
    return torch.stack([c * zero - s * one, s * zero + c * one]).movedim(0, wires[0])


def _cx(psi: Tensor, wires: tuple[int, ...]) -> Tensor:
    off, on = psi.movedim(wires, (0, 1))
    return torch.stack([off, on.flip(0)]).movedim((0, 1), wires)


def _cz(psi: Tensor, wires: tuple[int, ...]) -> Tensor:
    off, on = psi.movedim(wires, (0, 1))
    return torch.stack([off, torch.stack([on[0], -on[1]])]).movedim((0, 1), wires)


_APPLY = {"ry": _ry, "cx": _cx, "cz": _cz}


def gate_columns(ansatz: Ansatz, angles: Tensor, columns: Sequence[int]) -> Tensor:
    """Final real states (2**N, K) from the K basis states `columns`; differentiable.

    `angles` have shape `ansatz.angle_shape`.
    """
    index = torch.arange(2**ansatz.n_qubits, device=angles.device)
    psi = (index[:, None] == torch.tensor(list(columns), device=angles.device)).to(angles.dtype)  # (2**N, K)
    psi = psi.unflatten(0, (2,) * ansatz.n_qubits)  # one axis per wire, wire 0 first
    for gate in ansatz.gates():
        arguments = () if gate.slot is None else (angles[gate.slot],)
        psi = _APPLY[gate.name](psi, gate.wires, *arguments)
    return psi.reshape(2**ansatz.n_qubits, -1)


def gate_state(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Final real state (2**N,) of `ansatz` started in |0...0>: column 0 of `gate_columns`."""
    return gate_columns(ansatz, angles, [0]).squeeze(1)


def gate_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states: the square of `gate_state`."""
    return gate_state(ansatz, angles).square()
