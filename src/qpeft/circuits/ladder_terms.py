"""The circuit as a sum of few products: what the "cut" route multiplies.

Cut the wires into A (the first a = N // 2) and B (the other b). A layer crosses the cut with one CNOT, which is
P0 x I + P1 x X: each doubles the number of products, so the state before the last layer is exactly

    psi[(r, j), c] = sum_h left[j, r, h] right[j, h, c]

with j the bit of A's last wire, r A's other bits, c those of B and K = 2**(L - 2) terms h. X on B's first wire,
followed by B's ladder, reverses all of B. In the last layer all but two gates act on one side alone, and the
rotation of A's last wire with the CNOT into it is `turn`; the CNOT across the cut is left to the reader.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source

MAX_PIECE = 5  # wires in one dense matrix


class Terms(NamedTuple):
    """Axes: q the bit of A's last wire but one, j and s that of its last wire before and after `turn`."""

    left: Tensor  # (2 q, 2 j, 2**(a-2) rows, K)
    right: Tensor  # (2 j, K, 2**b columns)
    turn: Tensor  # (2 q, 2 s, 2 j)


def product_terms(angles: Tensor) -> Terms:
    """The terms of the circuit with angles (L, N), N >= 4; differentiable by autograd."""
    n_qubits, a = angles.shape[1], angles.shape[1] // 2
    every, last, of_b = _tables(n_qubits, angles.device)
    left, right = angles.new_zeros(2**a, 1), angles.new_zeros(2 ** (n_qubits - a), 1)
    left[0], right[0] = 1, 1
    layers = list(zip(*(pieces.unbind() for pieces in kron_matrices(angles, every)), strict=True))
    for index, layer in enumerate(layers[:-1]):
        if index:
            left, right = _branch(left), torch.cat([right, right.flip(0)], 1)
        left, right = _turn_chain(left, layer[:-of_b]), _turn_chain(right, layer[-of_b:])
    *layer_a, turn = [pieces[0] for pieces in kron_matrices(angles[-1:], last)]
    left = _turn_chain(left.view(2 ** (a - 1), -1), layer_a)  # columns (j, h)
    right = _turn_chain(torch.cat([right, right.flip(0)], 1), layers[-1][-of_b:])
    return Terms(
        left.view(2 ** (a - 2), 2, 2, -1).permute(1, 2, 0, 3).contiguous(),
        right.view(len(right), 2, -1).permute(1, 2, 0).contiguous(),
        turn.view(2, 2, 2),
    )


@cache
def _tables(n_qubits: int, device: torch.device) -> tuple[KronTables, KronTables, int]:
    """Tables for every layer, and for A in the last; how many matrices of the former are B's."""
    with torch.device("cpu"), torch.inference_mode(False):  # kept for good, and for training: nothing of a caller
        a = n_qubits // 2
        chain_b = _chain(range(a, n_qubits))
        last = [*_chain(range(a - 1)), Block((a - 1,), torch.tensor([0, 1, 1, 0]))]
        every = [*_chain(range(a)), *chain_b]
        return kron_tables(every, n_qubits, device), kron_tables(last, n_qubits, device), len(chain_b)


def _chain(wires: range) -> list[Block]:
    """Rotations and ladder of `wires` in pieces; all but the first in two versions, for the bit before it."""
    pieces = [tuple(piece.tolist()) for piece in torch.tensor(wires).tensor_split(-(-len(wires) // MAX_PIECE))]
    first, *others = [(piece, ladder_source(len(piece))) for piece in pieces]
    return [Block(*first), *(Block(piece, torch.cat([gray, gray.flip(0)])) for piece, gray in others)]


def _turn_chain(psi: Tensor, pieces: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Apply the matrices (versions * n, n) of a chain, from its first wire on, to psi (2**k, columns)."""
    columns, done = psi.shape[1], 1
    for piece in pieces:
        n = piece.shape[1]
        versions = piece.view(-1, n, n)
        psi = versions @ psi.view(done // len(versions), len(versions), n, -1)
        done *= n
    return psi.view(-1, columns)


def _branch(psi: Tensor) -> Tensor:
    """psi (2**a, columns) projected on the last bit: zeros (2**a, columns) beside ones."""
    bit = torch.arange(len(psi), device=psi.device)[:, None] % 2
    return torch.cat([psi * (1 - bit), psi * bit], 1)
