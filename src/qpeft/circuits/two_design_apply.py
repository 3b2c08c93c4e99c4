"""The two-design circuit applied to any block of columns, many circuits at once.

The wires are cut into groups of four and a last one. Within a group several gate layers are fused into one matrix, a
*stage*; between stages stands the diagonal of the CZs that cross from one group to the next:

    CZ circuit:      stage l = D_b R_{2l+1} D_a R_{2l} for l < L, stage L = R_{2L}
    given signs:     stage i = R_i for i <= 2L

with R_i the i-th layer of rotations (R_0 the initial one, then step a and step b of each layer) and D_a, D_b the
CZs of a step inside one group.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.ansatz import two_design_pairs
from qpeft.circuits.precision import full_precision
from qpeft.circuits.two_design_stages import run_stages

GROUP = 4  # wires


class _Tables(NamedTuple):
    """Constants of G neighbouring groups of g wires."""

    slots: Tensor  # (2L+1, G, g) int64 into the angles with a zero appended
    entries: Tensor  # (2**g, 4**g), the products of I and J on a group's wires
    inner: Tensor  # (2**g, 2**g), D_b and D_a as one factor of R_{2l+1}


@full_precision
def two_design_apply(angles: Tensor, n_qubits: int, n_layers: int, x: Tensor, signs: Tensor | None = None) -> Tensor:
    """Q(angles) x for M circuits with angles (M, P) and blocks x (M, 2**N, K): (M, 2**N, K), differentiable in both.

    `signs` (2L, 2**N), if given, takes the place of the CZ sub-layers. The result has the dtype of x, which must
    be that of the angles. No qubit: x itself.
    """
    if n_qubits == 0:
        return x
    kind = (angles.dtype, angles.device)
    stages = [_stages(angles, tables, fused=signs is None) for tables in _tables(n_qubits, n_layers, *kind)]
    diagonals = signs.to(angles) if signs is not None else _crossing(n_qubits, *kind).expand(n_layers, -1)
    return run_stages([[*groups, *last] for groups, last in zip(*stages, strict=True)], diagonals, x)


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
def _tables(n_qubits: int, n_layers: int, dtype: torch.dtype, device: torch.device) -> list[_Tables]:
    """Of the groups of four and of the last group, which has two to five wires (one if there is no other)."""
    with torch.device("cpu"):  # kept for good: no default device of the caller may leak into them
        rows = two_design_slots(n_qubits, n_layers)
        n_angles = 1 + max(slot for row in rows for slot in row if slot is not None)
        slots = torch.tensor([[n_angles if slot is None else slot for slot in row] for row in rows])
        cut = max(n_qubits - 2, 0) // GROUP * GROUP
        groups = (slots[:, :cut].unflatten(1, (-1, GROUP)), slots[:, None, cut:])
        constants = [(_entries(part.shape[2]), _inner(part.shape[2])) for part in groups]
        return [
            _Tables(part.to(device), entries.to(device, dtype), inner.to(device, dtype))
            for part, (entries, inner) in zip(groups, constants, strict=True)
        ]


@lru_cache(maxsize=64)
def _crossing(n_qubits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The CZs of step b between groups: (2**n_qubits,)."""
    with torch.device("cpu"):
        return _cz([(wire - 1, wire) for wire in range(GROUP, n_qubits - 1, GROUP)], n_qubits).to(device, dtype)


def _inner(n_wires: int) -> Tensor:
    step_a, step_b = (_cz(two_design_pairs(n_wires, start), n_wires) for start in (0, 1))
    return step_b[:, None] * step_a


def _entries(n_wires: int) -> Tensor:
    """Kronecker products of RY = cos I + sin J are sums of products of I and J: (2**g, 4**g)."""
    eye, turn = torch.eye(2), torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    return torch.stack([reduce(torch.kron, factors) for factors in product((eye, turn), repeat=n_wires)]).flatten(1)


def _cz(pairs: list[tuple[int, int]], n_qubits: int) -> Tensor:
    """Diagonal (2**n_qubits,) of the CZs on `pairs`."""
    index = torch.arange(2**n_qubits)
    sign = torch.ones(2**n_qubits)
    for first, second in pairs:
        both = (index >> (n_qubits - 1 - first)) & (index >> (n_qubits - 1 - second)) & 1
        sign = sign * (1 - 2 * both)
    return sign


def _stages(angles: Tensor, tables: _Tables, fused: bool) -> list[tuple[Tensor, ...]]:
    """For each stage the G matrices (M, 2**g, 2**g)."""
    rotations = _rotations(angles, tables)
    if fused:
        pairs = (rotations[:, 1::2] * tables.inner) @ rotations[:, :-1:2]
        rotations = torch.cat([pairs, rotations[:, -1:]], dim=1)
    return [stage.unbind(1) for stage in rotations.unbind(1)]


def _rotations(angles: Tensor, tables: _Tables) -> Tensor:
    """Kronecker products of every group in every layer: (M, 2L+1, G, 2**g, 2**g)."""
    padded = torch.cat([angles, angles.new_zeros(len(angles), 1)], dim=1) / 2
    half = padded.index_select(1, tables.slots.flatten()).view(len(angles), *tables.slots.shape)
    v, *factors = torch.stack([half.cos(), half.sin()], dim=-1).unbind(3)  # (M, 2L+1, G, 2) per wire
    for factor in factors:
        v = (v[..., :, None] * factor[..., None, :]).flatten(-2)
    return (v @ tables.entries).unflatten(-1, tables.inner.shape)
