"""Exact states of any circuit, in stages: rotations of all wires, then a permutation with signs.

Consecutive rotations become one 2 x 2 matrix per wire, and groups of neighbouring wires one Kronecker product. The CNOT
and CZ gates between them permute the amplitudes and change signs, which is one gather.
"""

from __future__ import annotations

from functools import reduce
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import Ansatz, definition
from qpeft.circuits.circuit import PAIRS, Gate
from qpeft.circuits.numerics import cached_tables, full_precision
from qpeft.errors import ConfigError

_GROUP = 5  # at most so many wires: larger matrices do more work, smaller ones as much in more products (measured)

# a rotation by t about P is cos(t / 2) - i sin(t / 2) P
_TURNS = {
    "rx": torch.tensor([[0, -1j], [-1j, 0]], dtype=torch.complex128),
    "ry": torch.tensor([[0, -1], [1, 0]], dtype=torch.complex128),
    "rz": torch.tensor([[-1j, 0], [0, 1j]], dtype=torch.complex128),
}


class _Tables(NamedTuple):
    """A circuit of S stages with at most R rotations of a wire in each."""

    slots: Tensor  # (R, S, N) index of the angle, n_angles where there is no rotation
    turns: Tensor  # (R, S, N, 2, 2)
    sources: Tensor  # (S, 2**N): amplitude j behind a stage's two-qubit gates was amplitude sources[j] before them
    signs: Tensor | None  # (S, 2**N) of +-1; None without CZ


@full_precision
def staged_states(angles: Tensor, ansatz: Ansatz) -> Tensor:
    """Final states (B, 2**N) from `|0...0>` at angles `(B, *ansatz.angle_shape)`, differentiable by autograd.

    The amplitudes are real for circuits without RX and RZ.
    """
    tables = _tables(ansatz, definition(ansatz), angles.dtype, angles.device)
    flat = torch.cat([angles.flatten(1), angles.new_zeros(len(angles), 1)], dim=1)
    half = flat[:, tables.slots][..., None, None] / 2  # (B, R, S, N, 1, 1)
    identity = torch.eye(2, dtype=angles.dtype, device=angles.device)
    gates = half.cos() * identity + half.sin() * tables.turns  # (B, R, S, N, 2, 2)
    gates = reduce(lambda before, after: after @ before, gates.unbind(1))
    groups = [_kron(group) for group in gates.tensor_split(ceil(ansatz.n_qubits / _GROUP), dim=2)]
    psi = torch.zeros(len(angles), 2**ansatz.n_qubits, dtype=gates.dtype, device=angles.device)
    psi[:, 0] = 1
    for stage in range(len(tables.sources)):
        psi = _turn(psi, [group[:, stage] for group in groups])[:, tables.sources[stage]]
        if tables.signs is not None:
            psi = psi * tables.signs[stage]
    return psi


def count_stages(ansatz: Ansatz) -> int:
    """Number of stages of the circuit."""
    return len(_stages(ansatz))


def _turn(psi: Tensor, matrices: list[Tensor]) -> Tensor:
    """The matrices (B, 2**k, 2**k) on consecutive groups of wires, applied to the states (B, 2**N)."""
    for matrix in matrices:  # the group's axis is first, and goes last
        psi = (matrix @ psi.view(len(psi), matrix.shape[1], -1)).mT.reshape(len(psi), -1)
    return psi


def _kron(gates: Tensor) -> Tensor:
    """Kronecker products over the wires: (B, S, k, 2, 2) -> (B, S, 2**k, 2**k)"""

    def times(product: Tensor, gate: Tensor) -> Tensor:
        entries = product[..., :, None, :, None] * gate[..., None, :, None, :]  # (B, S, rows, 2, columns, 2)
        return entries.flatten(-2).flatten(-3, -2)

    return reduce(times, gates.unbind(2))


@cached_tables(maxsize=16)
def _tables(ansatz: Ansatz, _: Any, dtype: torch.dtype, device: torch.device) -> _Tables:
    stages = _stages(ansatz)
    shape, n_qubits = ansatz.angle_shape, ansatz.n_qubits
    index = torch.arange(ansatz.n_angles).view(shape)
    most = max(1, *(len(turns) for wires, _ in stages for turns in wires))
    slots = torch.full((most, len(stages), n_qubits), ansatz.n_angles)
    turns = torch.zeros(most, len(stages), n_qubits, 2, 2, dtype=torch.complex128)
    for stage, (wires, _) in enumerate(stages):
        for wire, gates in enumerate(wires):
            for step, gate in enumerate(gates):
                slots[step, stage, wire] = index[gate.slot]
                turns[step, stage, wire] = _TURNS[gate.name]
    is_real = not turns.imag.any()
    permuted = [_permuted(gates, n_qubits) for _, gates in stages]
    signs = torch.stack([signs for _, signs in permuted]).to(device, dtype)
    return _Tables(
        slots.to(device),
        turns.real.to(device, dtype) if is_real else turns.to(device, dtype.to_complex()),
        torch.stack([source for source, _ in permuted]).to(device),
        None if (signs == 1).all() else signs,
    )


def _stages(ansatz: Ansatz) -> list[tuple[list[list[Gate]], list[Gate]]]:
    """For each stage the rotations of every wire, and the two-qubit gates behind them."""
    stages: list[tuple[list[list[Gate]], list[Gate]]] = []
    for gate in ansatz.gates():
        is_turn = len(gate.wires) == 1
        if not stages or (is_turn and stages[-1][1]):
            stages.append(([[] for _ in range(ansatz.n_qubits)], []))
        turns, pairs = stages[-1]
        (turns[gate.wires[0]] if is_turn else pairs).append(gate)
    return stages


def _permuted(gates: list[Gate], n_qubits: int) -> tuple[Tensor, Tensor]:
    """(2**N,) the amplitude that each basis state has behind the gates: its index before them, and its sign."""
    source, signs = torch.arange(2**n_qubits), torch.ones(2**n_qubits, dtype=torch.int8)
    index = torch.arange(2**n_qubits)
    for gate in gates:
        first, second = (index >> (n_qubits - 1 - wire) & 1 for wire in gate.wires)
        if gate.name == "cz":
            signs = signs * (1 - 2 * (first & second))
        elif gate.name == "cx":  # basis state j behind it was j with the target flipped where the control is 1
            before = index ^ (first << (n_qubits - 1 - gate.wires[1]))
            source, signs = source[before], signs[before]
        else:
            raise ConfigError(f"cannot simulate {gate}; gates on two wires are {', '.join(PAIRS)}")
    return source, signs
