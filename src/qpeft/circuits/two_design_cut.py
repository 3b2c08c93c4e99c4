"""The "cut" route of the `two_design` circuit: the states of two halves of the wires, joined at the very end.

Divide the wires into A (the first a) and B (the other b). Every layer has exactly one CZ between wires a-1 and a, and

    CZ = P0 (x) I + P1 (x) Z

with P0, P1 the projectors on wire a-1's states. So each layer doubles the number of branches, in each of which A and
B evolve on their own; a column of the circuit is the sum over its R = 2**L branches

    U[:, k] = sum_r alpha[k, r] (x) beta[k, r],    alpha (2**a,), beta (2**b,)

Rotations of a half are one matrix of Kronecker products, all CZs of a step inside a half one vector of signs. Only
the states of the halves are stored for the gradient, about 2**(q/2) R values per column. With J as in `kron` and G
the gradient with respect to a half's state psi after a rotation, the angle of wire i has gradient <G, J_i psi> / 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import two_design_pairs
from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables
from qpeft.circuits.numerics import cached_tables, full_precision, once_differentiable
from qpeft.circuits.two_design_apply import two_design_slots


class _Half(NamedTuple):
    """Constants of w wires; their states are rows (M, C, 2**w) with C = columns x branches."""

    starts: Tensor  # (K,) int64, the states from which the columns start
    enter: tuple[Tensor, Tensor]  # (1 or 2, 2**w): factors of step a and step b on each branch, before their rotations
    turn_index: Tensor  # (w * 2**w,) int64 into (2**w, 2**w)
    turn_sign: Tensor  # (w, 2**w), +-1/2


class _Tables(NamedTuple):
    kron: KronTables
    halves: tuple[_Half, _Half]
    place: Tensor  # (P,) int64: position of each angle in [A's rotations, B's rotations]


class _Run(NamedTuple):
    """One half's rotations R^T (M, 2**w, 2**w), the first (M, K, 2**w), and the states after each (M, C, 2**w)."""

    rotations: tuple[Tensor, ...]
    states: tuple[Tensor, ...]


@cached_tables()
def _tables(
    n_qubits: int, n_layers: int, columns: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> _Tables:
    slots = two_design_slots(n_qubits, n_layers)
    n_angles = 1 + max(slot for row in slots for slot in row if slot is not None)
    wires_of = [[n_angles if slot is None else slot for slot in row] for row in slots]
    sides = (range(n_qubits // 2), range(n_qubits // 2, n_qubits))
    halves = [_half(n_qubits, side, torch.tensor(columns)) for side in sides]
    blocks, order = [], []
    for side, half in zip(sides, halves, strict=True):
        for step, row in enumerate(wires_of):
            angles = tuple(row[wire] for wire in side)
            blocks.append(Block(angles, torch.arange(2 ** len(side)) if step else half.starts))
            order += angles
    place = torch.tensor(order).argsort(stable=True)[:n_angles].to(device)
    moved = [_Half(*(_move(field, dtype, device) for field in half)) for half in halves]
    return _Tables(kron_tables(blocks, n_angles + 1, device), (moved[0], moved[1]), place)


def _move(field: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(field, tuple):
        return tuple(_move(part, dtype, device) for part in field)
    return field.to(device, dtype if field.is_floating_point() else field.dtype)


def _half(n_qubits: int, wires: range, columns: Tensor) -> _Half:
    size = 2 ** len(wires)
    starts = columns >> (n_qubits - wires.stop) & (size - 1)
    row = torch.arange(size)
    masks = torch.tensor([size >> (place + 1) for place in range(len(wires))])[:, None]
    turn_index = row * size + (row ^ masks)
    turn_sign = torch.where(row & masks != 0, 0.5, -0.5)
    enter = (_enter(n_qubits, wires, 0), _enter(n_qubits, wires, 1))
    return _Half(starts, enter, turn_index.flatten(), turn_sign)


def _enter(n_qubits: int, wires: range, start: int) -> Tensor:
    """The CZs of a step on the half's states, (1, 2**w), or (2, 2**w) where one of them is cut."""
    row = torch.arange(2 ** len(wires))
    bit = {wire: row >> (wires.stop - 1 - wire) & 1 for wire in wires}
    enter = torch.ones(1, len(row))
    for first, second in two_design_pairs(n_qubits, start):
        if first in bit and second in bit:
            enter = enter * (1 - 2 * (bit[first] & bit[second]))
        elif first in bit:
            enter = enter * torch.stack([1 - bit[first], bit[first]])
        elif second in bit:
            enter = enter * torch.stack([torch.ones_like(row), 1 - 2 * bit[second]])
    return enter


def _runs(angles: Tensor, tables: _Tables) -> list[_Run]:
    # states are rows: they need the transposes, which are the rotations back
    padded = torch.cat([-angles, angles.new_zeros(len(angles), 1)], dim=1)
    matrices = kron_matrices(padded, tables.kron)
    steps = len(matrices) // 2
    sides = (matrices[:steps], matrices[steps:])
    return [_evolve(tuple(side), half) for side, half in zip(sides, tables.halves, strict=True)]


def _evolve(rotations: tuple[Tensor, ...], half: _Half) -> _Run:
    states = [rotations[0]]
    for step, rotation in enumerate(rotations[1:]):
        entered = (states[-1].unsqueeze(2) * half.enter[step % 2]).flatten(1, 2)
        states.append(torch.bmm(entered, rotation))
    return _Run(rotations, tuple(states))


def _by_column(run: _Run) -> Tensor:
    """The last states, (M * K, R, 2**w)."""
    first, last = run.states[0], run.states[-1]
    return last.view(first.shape[:2].numel(), -1, last.shape[-1])


def _pull_back(lam: Tensor, run: _Run, half: _Half) -> Tensor:
    """Gradient (M, (1+2L) w) of the half's angles from that of its last states (M, C, 2**w)."""
    n_modules, _, size = lam.shape
    outer = lam.new_empty(len(run.states), n_modules, size, size)
    for step in range(len(run.states) - 1, -1, -1):
        torch.bmm(lam.mT, run.states[step], out=outer[step])
        if step:
            enter = half.enter[(step - 1) % 2]
            lam = torch.bmm(lam, run.rotations[step].mT).unflatten(1, (-1, len(enter))) * enter
            lam = lam[:, :, 0] + lam[:, :, 1] if len(enter) == 2 else lam.squeeze(2)
    # gather is much faster than index_select along the last axis
    turned = outer.view(-1, size * size).gather(1, half.turn_index.expand(len(run.states) * n_modules, -1))
    slopes = (turned.view(-1, *half.turn_sign.shape) * half.turn_sign).sum(-1)
    return slopes.view(len(run.states), n_modules, -1).transpose(0, 1).flatten(1)


@full_precision
def _gradient(grad: Tensor, tables: _Tables, runs: list[_Run]) -> Tensor:
    """Gradient (M, P) from that of the columns (M, 2**q, K)."""
    alpha, beta = (_by_column(run) for run in runs)
    grad = grad.mT.reshape(-1, alpha.shape[-1], beta.shape[-1])
    lams = (torch.bmm(beta, grad.mT), torch.bmm(alpha, grad))
    parts = [
        _pull_back(lam.view_as(run.states[-1]), run, half)
        for lam, run, half in zip(lams, runs, tables.halves, strict=True)
    ]
    return torch.cat(parts, dim=1).index_select(1, tables.place)


class _CutColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, n_qubits: int, n_layers: int, columns: tuple[int, ...]) -> Tensor:
        ctx.tables = _tables(n_qubits, n_layers, columns, angles.dtype, angles.device)
        runs = _runs(angles, ctx.tables)
        ctx.save_for_backward(*(tensor for run in runs for tensors in run for tensor in tensors))
        alpha, beta = (_by_column(run) for run in runs)
        return torch.bmm(alpha.mT, beta).view(len(angles), len(columns), -1).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        quarter = len(saved) // 4
        a, a_states, b, b_states = (saved[i * quarter : (i + 1) * quarter] for i in range(4))
        return _gradient(grad, ctx.tables, [_Run(a, a_states), _Run(b, b_states)]), None, None, None


@full_precision
def cut_columns(angles: Tensor, n_qubits: int, n_layers: int, columns: tuple[int, ...]) -> Tensor:
    """Columns (M, 2**q, K) of the circuits with angles (M, P), q >= 2; each column is contiguous in memory."""
    return _CutColumns.apply(angles, n_qubits, n_layers, columns)
