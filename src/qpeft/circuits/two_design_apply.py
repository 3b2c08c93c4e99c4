"""The two-design circuit applied to any block of columns, many circuits at once.

The wires are cut into groups of four. Within a group several gate layers are fused into one 16 x 16 matrix, a
*stage*; between stages stands the diagonal of the CZs that cross from one group to the next:

    CZ circuit:      stage l = D_b R_{2l+1} D_a R_{2l} for l < L, stage L = R_{2L}
    given signs:     stage i = R_i for i <= 2L

with R_i the i-th layer of rotations (R_0 the initial one, then step a and step b of each layer) and D_a, D_b the
CZs of a step inside one group. A matrix product turns the front axis of the block to the back or takes it back, so
no axis is ever copied alone: the even stages go forth, the odd ones back, and the last group stays at the turn.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.precision import full_precision

GROUP = 4  # wires


class _Tables(NamedTuple):
    slots: Tensor  # (2L+1, G, 4) int64 into the angles with a zero appended
    inner: Tensor  # (16, 16), D_b and D_a of a group as one factor of R_{2l+1}
    crossing: Tensor  # (2**N,), the CZs of step b between groups


@full_precision
def two_design_apply(angles: Tensor, n_qubits: int, n_layers: int, x: Tensor, signs: Tensor | None = None) -> Tensor:
    """Q(angles) x for M circuits with angles (M, P) and blocks x (M, 2**N, K): (M, 2**N, K), differentiable in both.

    `signs` (2L, 2**N), if given, takes the place of the CZ sub-layers. The result has the dtype of x, which must
    be that of the angles. No qubit: x itself.
    """
    if n_qubits == 0:
        return x
    rotations = _rotations(angles, _tables(n_qubits, n_layers, angles.dtype, angles.device).slots)
    if signs is None:
        _, inner, crossing = _tables(n_qubits, n_layers, angles.dtype, angles.device)
        stages, diagonals = _fuse(rotations, inner), crossing.expand(n_layers, -1)
    else:
        stages, diagonals = list(rotations.unbind(1)), signs.to(angles.dtype)
    return _run([_trim(stage, n_qubits) for stage in stages], diagonals, x)


def two_design_slots(n_qubits: int, n_layers: int) -> list[list[int | None]]:
    """For each layer of rotations and each wire the place of its angle in the flat vector, None without a gate."""
    slots: list[list[int | None]] = [list(range(n_qubits))]
    place = n_qubits
    for step in range(2 * n_layers):
        first = step % 2
        rotated = range(first, first + (n_qubits - first) // 2 * 2)
        slots.append([place + wire - first if wire in rotated else None for wire in range(n_qubits)])
        place += len(rotated)
    return slots


@lru_cache(maxsize=64)
def _tables(n_qubits: int, n_layers: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    with torch.device("cpu"):  # kept for good: no default device of the caller may leak into them
        rows = two_design_slots(n_qubits, n_layers)
        n_angles = 1 + max(slot for row in rows for slot in row if slot is not None)
        padded = [row + [None] * (-n_qubits % GROUP) for row in rows]
        slots = torch.tensor([[n_angles if slot is None else slot for slot in row] for row in padded])
        step_a, step_b = _cz([(0, 1), (2, 3)], GROUP), _cz([(1, 2)], GROUP)
        crossing = _cz([(wire, wire + 1) for wire in range(GROUP - 1, n_qubits - 1, GROUP)], n_qubits)
        inner = step_b[:, None] * step_a
        return _Tables(slots.view(len(rows), -1, GROUP).to(device), inner.to(device, dtype), crossing.to(device, dtype))


def _cz(pairs: list[tuple[int, int]], n_qubits: int) -> Tensor:
    """Diagonal (2**n_qubits,) of the CZs on `pairs`."""
    index = torch.arange(2**n_qubits)
    sign = torch.ones(2**n_qubits)
    for first, second in pairs:
        both = (index >> (n_qubits - 1 - first)) & (index >> (n_qubits - 1 - second)) & 1
        sign = sign * (1 - 2 * both)
    return sign


def _rotations(angles: Tensor, slots: Tensor) -> Tensor:
    """Kronecker products of every group in every layer: (M, 2L+1, G, 16, 16)."""
    padded = torch.cat([angles, angles.new_zeros(len(angles), 1)], dim=1) / 2
    half = padded.index_select(1, slots.flatten()).view(len(angles), *slots.shape)
    c, s = half.cos(), half.sin()
    turns = torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))  # (M, 2L+1, G, 4, 2, 2)
    pairs = _kron(turns[..., 0::2, :, :], turns[..., 1::2, :, :])  # (M, 2L+1, G, 2, 4, 4)
    return _kron(pairs[..., 0, :, :], pairs[..., 1, :, :])


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker products of the last two axes of a and b."""
    return (a[..., :, None, :, None] * b[..., None, :, None, :]).flatten(-2).flatten(-3, -2)


def _fuse(rotations: Tensor, inner: Tensor) -> list[Tensor]:
    """Stages of the CZ circuit, each (M, G, 16, 16)."""
    fused = (rotations[:, 1::2] * inner) @ rotations[:, :-1:2]
    return [*fused.unbind(1), rotations[:, -1]]


def _trim(stage: Tensor, n_qubits: int) -> list[Tensor]:
    """The groups' matrices (M, 2**g, 2**g): the last group without the wires that do not exist."""
    *groups, last = stage.unbind(1)
    step = 2 ** (-n_qubits % GROUP)
    return [*groups, last[:, ::step, ::step]]


def _run(stages: list[list[Tensor]], diagonals: Tensor, x: Tensor) -> Tensor:
    """Alternate stages and diagonals (S-1, 2**N) on x (M, 2**N, K), whose axes are (front, last, K) or turned."""
    n_modules, size, k = x.shape
    last = stages[0][-1].shape[-1]
    signs = diagonals.view(-1, size // last, last)
    for index, (*groups, end) in enumerate(stages):
        if index % 2 == 0:
            x = x if index == 0 else x.view(n_modules, -1, last, k) * signs[index - 1, ..., None]
            for matrix in groups:
                x = _forth(matrix, x)
            x = end @ x.reshape(n_modules, last, -1)
        else:  # from (last, K, front)
            x = end @ (x.view(n_modules, last, k, -1) * signs[index - 1].mT[:, None]).flatten(2)
            for matrix in reversed(groups):
                x = _back(matrix, x)
    if len(stages) % 2:
        x = x.view(n_modules, last, k, -1).permute(0, 3, 1, 2)
    return x.reshape(n_modules, size, k)


def _forth(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply `matrix` (M, n, n) to the front axis of x and make it the last: (M, rest, n)."""
    return x.reshape(len(x), matrix.shape[-1], -1).mT @ matrix.mT


def _back(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply `matrix` (M, n, n) to the last axis of x and make it the front one: (M, n, rest)."""
    return matrix @ x.reshape(len(x), -1, matrix.shape[-1]).mT
