"""Kronecker products of RY rotations, all layers at once, from constant index tables.

For a group of k wires whose half angles have cosines and sines (c_i, s_i), the product of
RY = [[c, -s], [s, c]] over the group is the 2**k x 2**k matrix

    K[r, c] = (-1)^popcount(~r & c) * v[r ^ c],    v[x] = prod_i (s_i if bit i of x is set else c_i)

so every entry is one of +-v: two gathers and one product build K for any k.
RY(t)' = J RY(t) / 2 with J = [[0, -1], [1, 0]]; J of one wire commutes with the rotations of all others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A matrix to build: rows `rows` of the K of `wires` (most significant bit first)."""

    wires: tuple[int, ...]
    rows: Tensor  # (R,) int64, basis indices of the group


class KronTables(NamedTuple):
    """Constant indices from cosines and sines to the entries of one layer's matrices."""

    factors: Tensor  # (k_max * F,) int64 into [cos (N), sin (N), 1]
    k_max: int
    entries: Tensor  # (E,) int64 into [v, -v]
    shapes: tuple[tuple[int, int], ...]  # of the blocks


def ladder_source(n_qubits: int, device: torch.device | str = "cpu") -> Tensor:
    """Gray code (2**N,) of src[c] = c ^ (c >> 1): the open CNOT ladder 0 -> 1 -> ... -> N-1 is `new = old[src]`."""
    index = torch.arange(2**n_qubits, device=device)
    return index ^ (index >> 1)


def kron_tables(blocks: list[Block], n_qubits: int, device: torch.device) -> KronTables:
    """Tables for `kron_matrices`, on `device`."""
    k_max = max(len(block.wires) for block in blocks)
    factors = torch.cat([_factors(block.wires, k_max, n_qubits) for block in blocks], dim=1)
    entries, offset = [], 0
    for wires, rows in blocks:
        columns = torch.arange(2 ** len(wires))
        negative = _parity(~rows[:, None] & columns)
        entries.append((offset + (rows[:, None] ^ columns) + factors.shape[1] * negative).flatten())
        offset += len(columns)
    shapes = tuple((len(block.rows), 2 ** len(block.wires)) for block in blocks)
    return KronTables(factors.flatten().to(device), k_max, torch.cat(entries).to(device), shapes)


def kron_matrices(angles: Tensor, tables: KronTables) -> list[Tensor]:
    """Matrices (L, R, 2**k) of every block, for all layers of `angles` (L, N)."""
    half = angles / 2
    factors = torch.cat([half.cos(), half.sin(), half.new_ones(len(half), 1)], dim=1)  # (L, 2N+1)
    v = factors.index_select(1, tables.factors).view(len(half), tables.k_max, -1).prod(1)  # (L, F)
    # gather is four times as fast in float64 as index_select along the second axis
    flat = torch.cat([v, -v], dim=1).gather(1, tables.entries.expand(len(half), -1))  # (L, E)
    sizes = [rows * columns for rows, columns in tables.shapes]
    return [part.unflatten(1, shape) for part, shape in zip(flat.split(sizes, 1), tables.shapes, strict=True)]


def turn_tables(wires: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Columns vec(J_i) for the group's wires in ascending order: (4**k, k).

    With M = lam psi^T summed over the other wires, <lam, J_i psi> is column i's product with vec(M).
    """
    n = 2 ** len(wires)
    rows, columns = torch.arange(n)[:, None], torch.arange(n)
    turns = []
    for wire in sorted(wires):
        mask = n >> (wires.index(wire) + 1)
        sign = torch.where(rows & mask != 0, 1, -1)
        turns.append((sign * (rows ^ mask == columns)).flatten())
    return torch.stack(turns, dim=1).to(device, dtype)


def _factors(wires: tuple[int, ...], k_max: int, n_qubits: int) -> Tensor:
    """The index of the factor of each wire, for each basis state of the group: (k_max, 2**k)."""
    x = torch.arange(2 ** len(wires))
    bits = [(x >> (len(wires) - 1 - place)) & 1 for place in range(len(wires))]
    chosen = [wire + n_qubits * bit for wire, bit in zip(wires, bits, strict=True)]
    padding = [torch.full_like(x, 2 * n_qubits)] * (k_max - len(wires))  # the constant 1
    return torch.stack(chosen + padding)


def _parity(x: Tensor) -> Tensor:
    for shift in (16, 8, 4, 2, 1):
        x = x ^ (x >> shift)
    return x & 1
