"""Compound matrices, and products of rotations of pairs of wires."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from qpeft.circuits.numerics import cached_tables


@cached_tables
def _rows(n: int, k: int) -> tuple[Tensor, Tensor]:
    """For each k-subset of 0..n-1 and each position in it: its element there, and the rest as a
    (k-1)-subset's number.

    Both (binom(n, k), k), subsets in lexicographic order. With n = 3 and k = 2:

        subsets    elements    rest, as numbers of (0,), (1,), (2,)
        (0, 1)     0 1         1 0
        (0, 2)     0 2         2 0
        (1, 2)     1 2         2 1
    """
    smaller = combinations(range(n), k - 1)
    number = {subset: i for i, subset in enumerate(smaller)}
    elements = list(combinations(range(n), k))
    rest = []
    for subset in elements:
        without = [subset[:i] + subset[i + 1 :] for i in range(k)]
        rest.append([number[others] for others in without])
    return torch.tensor(elements), torch.tensor(rest)


def compounds(a: Tensor, order: int) -> list[Tensor]:
    """C_1 .. C_order of matrices a (..., n, n): C_k[I, J] = det a[I, J] for k-subsets I, J in
    lexicographic order.

    C_k comes from C_(k-1) by expansion along the first row of each minor: differentiable
    everywhere, and exactly the identity for the identity.
    """
    powers = [a]  # C_1, C_2, ...
    for k in range(2, order + 1):
        element, rest = (table.to(a.device) for table in _rows(a.shape[-1], k))
        top = a[..., element[:, 0], :]  # the first row of each minor, (..., subsets, n)
        below = powers[-1][..., rest[:, 0], :]  # the minors of its other rows, (..., subsets, ...)
        power = torch.zeros((), dtype=a.dtype, device=a.device)
        for i in range(k):
            entry = top[..., element[:, i]]  # at the i-th column of each minor, (..., I, J)
            minor = below[..., rest[:, i]]  # without that column, (..., I, J)
            power = power + (-1) ** i * entry * minor
        powers.append(power)
    return powers


def pyramid(n: int) -> list[tuple[int, int]]:
    """The pairs of neighbouring wires of the n(n-1)/2 gates, in order: 0, 1 0, 2 1 0, .."""
    return [(wire, wire + 1) for first in range(n - 1) for wire in range(first, -1, -1)]


def butterfly(n: int) -> list[tuple[int, int]]:
    """The pairs of wires of the (n/2) log2 n gates, n a power of 2: distances 1, 2, 4, .."""
    distances = [2**i for i in range(n.bit_length() - 1)]
    return [(wire, wire + d) for d in distances for wire in range(n) if not wire & d]


def rotations(angles: Tensor, gates: Sequence[tuple[int, int]], n: int) -> Tensor:
    """The product (..., n, n) of rotations [[cos, sin], [-sin, cos]] of pairs of wires, the first
    one rightmost.

    `angles` (..., gates) are in radians. On one excitation this is the circuit of RBS gates on
    these wires.
    """
    eye = torch.eye(n).to(angles).expand(*angles.shape[:-1], n, n)
    rows = list(eye.unbind(-2))  # (..., n) each
    cosines = angles.cos().unsqueeze(-2).unbind(-1)  # (..., 1) of each gate
    sines = angles.sin().unsqueeze(-2).unbind(-1)
    for (i, j), c, s in zip(gates, cosines, sines, strict=True):
        upper = rows[i]
        lower = rows[j]
        rows[i] = c * upper + s * lower
        rows[j] = c * lower - s * upper
    return torch.stack(rows, -2)
