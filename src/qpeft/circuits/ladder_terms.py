"""The circuit as a sum of few products: what the "cut" route multiplies.

Cut the wires into A (the first a = N // 2) and B (the other b), and keep A's last wire apart: its bit before a
layer is j, after it s; q is the bit of the wire before it and r those of the others. Only `turn` mixes j and s,

    turn[q, s, j] = (X**q RY)[s, j],    X from the CNOT q -> s

and only one CNOT crosses the cut: controlled by s, it reverses all of B after B's own ladder. So each layer
doubles the number of products, and before the last turn the state is exactly

    psi[r, q, j, c] = sum_h left[r, q, j, h] right[j, h, c],    K = 2**(L - 2) terms h
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source

MAX_PIECE = 5  # wires in one dense matrix


class Terms(NamedTuple):
    """What `product_terms` gives."""

    left: Tensor  # (2**(a-2) rows, 2 q, 2 j, K)
    right: Tensor  # (2 j, K, 2**b columns)
    turn: Tensor  # (2 q, 2 s, 2 j)


def product_terms(angles: Tensor) -> Terms:
    """The terms of the circuit with angles (L, N), N >= 4; differentiable by autograd."""
    n_qubits, a = angles.shape[1], angles.shape[1] // 2
    tables, of_a = _tables(n_qubits, angles.device)
    *layers, last = zip(*(matrix.unbind() for matrix in kron_matrices(angles, tables)), strict=True)
    left, right = angles.new_zeros(2 ** (a - 1), 1), angles.new_zeros(2 ** (n_qubits - a), 1)  # columns (j, h)
    left[0], right[0] = 1, 1
    for turn, *pieces in layers:
        left = _branch(_run(left, pieces[:of_a]), turn)
        right = _run(right, pieces[of_a:])
        right = torch.cat([right, right.flip(0)], 1)
    turn, *pieces = last
    left, right = _run(left, pieces[:of_a]), _run(right, pieces[of_a:])
    if not layers:  # nothing has made a j = 1 yet
        left, right = pad(left, (0, 1)), pad(right, (0, 1))
    return Terms(left.view(2 ** (a - 2), 2, 2, -1), right.mT.reshape(2, -1, len(right)), turn.view(2, 2, 2))


@cache
def _tables(n_qubits: int, device: torch.device) -> tuple[KronTables, int]:
    """Tables for one layer's matrices: of A's last wire, of A's others, of B; and how many are A's others."""
    with torch.device("cpu"), torch.inference_mode(False):  # kept for good, and for training: nothing of a caller
        a = n_qubits // 2
        turn, others, of_b = (
            Block((a - 1,), torch.tensor([0, 1, 1, 0])),
            _chain(range(a - 1)),
            _chain(range(a, n_qubits)),
        )
        return kron_tables([turn, *others, *of_b], n_qubits, device), len(others)


def _chain(wires: range) -> list[Block]:
    """Rotations and ladder of `wires` in pieces; all but the first in two versions, for the bit before it."""
    pieces = [tuple(piece.tolist()) for piece in torch.tensor(wires).tensor_split(-(-len(wires) // MAX_PIECE))]
    first, *others = [(piece, ladder_source(len(piece))) for piece in pieces]
    return [Block(*first), *(Block(piece, torch.cat([gray, gray.flip(0)])) for piece, gray in others)]


def _run(psi: Tensor, pieces: list[Tensor]) -> Tensor:
    """Apply the matrices (versions * n, n) of a chain, from its first wire on, to psi (2**k, columns)."""
    columns, done = psi.shape[1], 1
    for piece in pieces:
        n = piece.shape[1]
        versions = piece.view(-1, n, n)
        psi = versions @ psi.view(done // len(versions), len(versions), n, -1)
        done *= n
    return psi.view(-1, columns)


def _branch(left: Tensor, turn: Tensor) -> Tensor:
    """left (rows and q, columns) -> (rows and q, s and columns): a column's share of each s."""
    j = min(2, left.shape[1])
    shares = left.view(-1, 2, 1, j, left.shape[1] // j) * turn.view(2, 2, 2)[:, :, :j, None]
    return shares.view(len(left), -1)
