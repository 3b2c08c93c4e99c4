"""The two-design circuit applied to any block of columns, many circuits at once.

The wires are divided into groups of at most four. Within a group several gate layers are fused into one matrix, a
*stage*; between stages acts the diagonal of the CZs between groups:

    CZ circuit:      stage l = D_b R_{2l+1} D_a R_{2l} for l < L, stage L = R_{2L}
    given signs:     stage i = R_i for i <= 2L

with R_i the i-th layer of rotations (R_0 the initial one, then step a and step b of each layer) and D_a, D_b the
CZs of a step inside one group.
"""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import two_design_pairs
from qpeft.circuits.numerics import cached_tables, full_precision
from qpeft.circuits.two_design_stages import run_stages, spread

GROUP = 4  # wires at most


class _Tables(NamedTuple):
    slots: Tensor  # (2L+1, G, 4) int64 into the angles with a zero appended, for the missing wires of a small group
    entries: Tensor  # (16, 256), the products of I and J on a group's wires
    inner: Tensor  # (16, 16), D_b and D_a as one factor of R_{2l+1}


@full_precision
def two_design_apply(angles: Tensor, n_qubits: int, n_layers: int, x: Tensor, signs: Tensor | None = None) -> Tensor:
    """Q(angles) x for M circuits with angles (M, P) and blocks x (M, 2**N, K): (M, 2**N, K), differentiable in both.

    `signs` (2L, 2**N), if given, replaces the CZ sub-layers. The result has the dtype of x, which must
    be that of the angles. No qubit: x itself.
    """
    if n_qubits == 0:
        return x
    tables = _tables(n_qubits, n_layers, angles.dtype, angles.device)
    sizes, k = _group_sizes(n_qubits), x.shape[-1]
    stages = _stages(angles, tables, sizes, fused=signs is None)
    if signs is None:
        return run_stages(stages, _crossing(n_qubits, k, angles.dtype, angles.device), x)
    return run_stages(stages, spread(signs.to(angles), 2 ** sizes[-1], k), x)


def two_design_slots(n_qubits: int, n_layers: int) -> list[list[int | None]]:
    """The index of the angle of each wire in each layer of rotations, in the flat vector; None without a gate."""
    slots: list[list[int | None]] = [list(range(n_qubits))]
    place = n_qubits
    for step in range(2 * n_layers):
        first = step % 2
        rotated = range(first, first + (n_qubits - first) // 2 * 2)
        slots.append([place + wire - first if wire in rotated else None for wire in range(n_qubits)])
        place += len(rotated)
    return slots


def _group_sizes(n_qubits: int) -> list[int]:
    """Wires of each group. All but the last are even: then only CZs of step b cross."""
    fours, rest = divmod(n_qubits, GROUP)
    if rest == 1 and fours:  # products with 2 x 2 matrices are slow
        return [GROUP] * (fours - 1) + [2, 3]
    return [GROUP] * fours + [rest] * (rest > 0)


@cached_tables()
def _tables(n_qubits: int, n_layers: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    rows = two_design_slots(n_qubits, n_layers)
    n_angles = 1 + max(slot for row in rows for slot in row if slot is not None)
    sizes = _group_sizes(n_qubits)
    starts = [sum(sizes[:group]) for group in range(len(sizes))]
    padded = [
        [row[start : start + size] + [None] * (GROUP - size) for start, size in zip(starts, sizes, strict=True)]
        for row in rows
    ]
    slots = [[[n_angles if slot is None else slot for slot in group] for group in row] for row in padded]
    step_a, step_b = (_cz(two_design_pairs(GROUP, start), GROUP) for start in (0, 1))
    constants = (_entries(), step_b[:, None] * step_a)
    return _Tables(torch.tensor(slots).to(device), *(table.to(device, dtype) for table in constants))


@cached_tables(maxsize=16)
def _crossing(n_qubits: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The CZs of step b between groups, the same after each stage, in both orders of the axes: (2, 2**N * K)."""
    sizes = _group_sizes(n_qubits)
    starts = [sum(sizes[:group]) for group in range(1, len(sizes))]
    signs = _cz([(start - 1, start) for start in starts], n_qubits)
    return spread(signs.expand(2, -1), 2 ** sizes[-1], k).to(device, dtype)


def _entries() -> Tensor:
    """Kronecker products of RY = cos I + sin J are sums of products of I and J: (16, 256)."""
    eye, turn = torch.eye(2), torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    return torch.stack([reduce(torch.kron, factors) for factors in product((eye, turn), repeat=GROUP)]).flatten(1)


def _cz(pairs: list[tuple[int, int]], n_qubits: int) -> Tensor:
    """Diagonal (2**n_qubits,) of the CZs on `pairs`."""
    index = torch.arange(2**n_qubits)
    sign = torch.ones(2**n_qubits)
    for first, second in pairs:
        both = (index >> (n_qubits - 1 - first)) & (index >> (n_qubits - 1 - second)) & 1
        sign = sign * (1 - 2 * both)
    return sign


def _stages(angles: Tensor, tables: _Tables, sizes: list[int], fused: bool) -> list[list[Tensor]]:
    """The groups' matrices (M, 2**g, 2**g) of each stage, contiguous, because bmm would process others one by one."""
    rotations = _rotations(angles, tables)
    if fused:
        pairs = (rotations[1::2] * tables.inner) @ rotations[:-1:2]
        rotations = torch.cat([pairs, rotations[-1:]])
    steps = [2 ** (GROUP - size) for size in sizes]  # distance of the rows in which the missing wires are 0
    found = zip(rotations.unbind(1), steps, strict=True)
    groups = [(group if step == 1 else group[..., ::step, ::step]).contiguous() for group, step in found]
    return [list(stage) for stage in zip(*(group.unbind() for group in groups), strict=True)]


def _rotations(angles: Tensor, tables: _Tables) -> Tensor:
    """Kronecker products of every group in every layer: (2L+1, G, M, 16, 16)."""
    half = torch.cat([angles, angles.new_zeros(len(angles), 1)], dim=1).mT / 2
    half = half.index_select(0, tables.slots.flatten()).view(*tables.slots.shape, -1)  # (2L+1, G, 4, M)
    factors = torch.stack([half.cos(), half.sin()], dim=-1)  # (2L+1, G, 4, M, 2)
    pairs = (factors[:, :, 0::2, :, :, None] * factors[:, :, 1::2, :, None, :]).flatten(-2)  # (2L+1, G, 2, M, 4)
    v = (pairs[:, :, 0, :, :, None] * pairs[:, :, 1, :, None, :]).flatten(-2)  # (2L+1, G, M, 16)
    return (v @ tables.entries).unflatten(-1, tables.inner.shape)
