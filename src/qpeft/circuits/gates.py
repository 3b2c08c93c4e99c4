"""Slow reference simulator: every gate of any ansatz is one step of plain autograd.

The fast routes are tested against it, and it simulates circuits without a fast route.
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


def _rx(psi: Tensor, wires: tuple[int, ...], angle: Tensor) -> Tensor:
    zero, one = psi.movedim(wires[0], 0)
    c, s = torch.cos(angle / 2), -1j * torch.sin(angle / 2)
    return torch.stack([c * zero + s * one, s * zero + c * one]).movedim(0, wires[0])


def _rz(psi: Tensor, wires: tuple[int, ...], angle: Tensor) -> Tensor:
    zero, one = psi.movedim(wires[0], 0)
    phase = torch.exp(-0.5j * angle)
    return torch.stack([phase * zero, phase.conj() * one]).movedim(0, wires[0])


def _cx(psi: Tensor, wires: tuple[int, ...]) -> Tensor:
    off, on = psi.movedim(wires, (0, 1))
    return torch.stack([off, on.flip(0)]).movedim((0, 1), wires)


def _cz(psi: Tensor, wires: tuple[int, ...]) -> Tensor:
    off, on = psi.movedim(wires, (0, 1))
    return torch.stack([off, torch.stack([on[0], -on[1]])]).movedim((0, 1), wires)


_APPLY = {"rx": _rx, "ry": _ry, "rz": _rz, "cx": _cx, "cz": _cz}


def gate_columns(ansatz: Ansatz, angles: Tensor, columns: Sequence[int]) -> Tensor:
    """Final states (2**N, K) from the K basis states `columns`, as `gate_evolve`.

    `angles` have shape `ansatz.angle_shape`.
    """
    index = torch.arange(2**ansatz.n_qubits, device=angles.device)
    start = (index[:, None] == torch.tensor(list(columns), device=angles.device)).to(angles.dtype)
    return gate_evolve(ansatz, angles, start)


def gate_evolve(ansatz: Ansatz, angles: Tensor, start: Tensor) -> Tensor:
    """Final states (2**N, K) from the K states `start` (2**N, K), complex after an RX or RZ; differentiable."""
    psi = start.unflatten(0, (2,) * ansatz.n_qubits)  # one axis per wire, wire 0 first
    for gate in ansatz.gates():
        arguments = () if gate.slot is None else (angles[gate.slot],)
        psi = _APPLY[gate.name](psi, gate.wires, *arguments)
    return psi.reshape(start.shape)


def gate_state(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Final state (2**N,) of `ansatz` started in |0...0>: column 0 of `gate_columns`."""
    return gate_columns(ansatz, angles, [0]).squeeze(1)


def gate_probabilities(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states of any ansatz started in `|0...0>`; wire 0 is the most significant bit.

    `angles` have shape `ansatz.angle_shape`, float32 or float64; the result has their dtype and device, and derivatives
    of every order. Each gate is a step of plain autograd: `exact_probabilities` is far faster for most circuits.

    Raises IndexError if `angles` has no element for a gate.
    """
    psi = gate_state(ansatz, angles)
    return psi.real.square() + psi.imag.square() if psi.is_complex() else psi.square()
