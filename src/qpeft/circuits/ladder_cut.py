"""The "cut" route for large, shallow circuits: any rows of the probabilities, without storing the whole state.

Cut the wires into A (the first a = N // 2) and B (the other b), and treat A's last wire separately: its bit before a
layer is j, after it s; q is the bit of the wire before it and r those of the others. Only `turn` mixes j and s,

    turn[q, s, j] = (X**q RY)[s, j],    X from the CNOT q -> s

and only one CNOT crosses the cut: controlled by s, it reverses all of B after B's own ladder. So each layer
doubles the number of products, and before the last turn the state is exactly

    psi[r, q, j, c] = sum_h left[r, q, j, h] right[j, h, c],    K = 2**(L - 2) terms h

The rows (r, q, s) of A's bits by the columns c of B's are then

    x[j] = left[:, q, j] right[j]        (R, columns), the sum over the K terms
    t = turn[q] x
    p[r, q, 0, c] = t[0, r, c]^2        p[r, q, 1, ~c] = t[1, r, c]^2

the last because the CNOT across the cut reverses B. They are computed in tiles that stay in the cache, and recomputed
in the backward pass: memory is p and its gradient at any depth, and cost grows as 2**(N + L).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source
from qpeft.circuits.numerics import cached_tables, full_precision, once_differentiable

MAX_PIECE = 5  # wires in one dense matrix


class Terms(NamedTuple):
    """The result of `product_terms`."""

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
    if not layers:  # j is still 0
        left, right = pad(left, (0, 1)), pad(right, (0, 1))
    return Terms(left.view(2 ** (a - 2), 2, 2, -1), right.mT.reshape(2, -1, len(right)), turn.view(2, 2, 2))


@cached_tables()
def _tables(n_qubits: int, device: torch.device) -> tuple[KronTables, int]:
    """Tables for one layer's matrices: of A's last wire, of its other wires, of B; and the number for its others."""
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


TILE = (128, 1024)  # rows, columns; measured with benchmarks/bench.py --only large_circuits
DEVICE_TILE = (1024, 4096)  # on an accelerator: fewer, larger products


class _Tile(NamedTuple):
    q: int
    rows: slice
    columns: slice
    x: Tensor  # (2 j, rows, columns)
    t: Tensor  # (2 s, rows, columns)

    def of(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of p (R, 2 q, 2 s, 2**b) that belong to t[0] and, in reversed order, to t[1]."""
        n = p.shape[3]
        reverse = slice(n - self.columns.stop, n - self.columns.start)
        return p[self.rows, self.q, 0, self.columns], p[self.rows, self.q, 1, reverse]


def _tiles(terms: Terms) -> Iterator[_Tile]:
    """Every tile once; x and t may be overwritten and are valid until the next tile."""
    left, right, turn = terms
    height, width = TILE if left.device.type == "cpu" else DEVICE_TILE
    all_columns, all_rows = _slices(right.shape[2], width), _slices(len(left), height)
    buffers = left.new_empty(2, 2 * height * width)
    for q in (0, 1):
        for columns in all_columns:
            for rows in all_rows:
                shape = (2, rows.stop - rows.start, columns.stop - columns.start)
                x, t = (buffer[: 2 * shape[1] * shape[2]].view(shape) for buffer in buffers)
                torch.bmm(_by_j(left[rows, q]), right[:, :, columns], out=x)
                torch.mm(turn[q], x.view(2, -1), out=t.view(2, -1))
                yield _Tile(q, rows, columns, x, t)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _shape(terms: Terms) -> tuple[int, int, int, int]:
    return len(terms.left), 2, 2, terms.right.shape[2]


def _by_j(term: Tensor) -> Tensor:
    """(n, 2 j, K) -> (2 j, n, K)."""
    return term.transpose(0, 1)


def _probabilities(terms: Terms) -> Tensor:
    """p (R * 2 * 2 * 2**b,) of the rows of `terms`."""
    p = terms.left.new_empty(_shape(terms))
    for tile in _tiles(terms):
        straight, reverse = tile.of(p)
        torch.square(tile.t[0], out=straight)
        torch.square(tile.t[1].flip(1), out=reverse)
    return p.view(-1)


def _term_gradients(grad: Tensor, terms: Terms) -> Terms:
    """Half the gradients of `terms`, from d loss / d p (R * 2 * 2 * 2**b,)."""
    grad = grad.reshape(_shape(terms))
    left, right, turn = (torch.zeros_like(term) for term in terms)
    for tile in _tiles(terms):
        straight, reverse = tile.of(grad)
        tile.t[0].mul_(straight)
        tile.t[1].mul_(reverse.flip(1))
        lam, x = tile.t.view(2, -1), tile.x.view(2, -1)
        turn[tile.q].addmm_(lam, x.mT)
        before = torch.mm(terms.turn[tile.q].mT, lam, out=x).view_as(tile.x)
        _by_j(left[tile.rows, tile.q]).baddbmm_(before, terms.right[:, :, tile.columns].mT)
        right[:, :, tile.columns].baddbmm_(_by_j(terms.left[tile.rows, tile.q]).mT, before)
    return Terms(left, right, turn)


class _Span(NamedTuple):
    """The rows of A, without its last two bits, that contain a slice, and the surplus before and after the slice."""

    rows: slice
    before: int
    after: int


def _span(n_qubits: int, start: int, stop: int) -> _Span:
    size = 2 ** (n_qubits - n_qubits // 2 + 2)
    rows = slice(start // size, -(-stop // size))
    return _Span(rows, start - rows.start * size, rows.stop * size - stop)


def _terms(angles: Tensor, rows: slice) -> Terms:
    terms = product_terms(angles)
    return terms._replace(left=terms.left[rows])


@full_precision
def _gradient(grad: Tensor, angles: Tensor, span: _Span) -> Tensor:
    """Gradient (L, N) from that of the wanted probabilities."""
    with torch.enable_grad():
        angles = angles.detach().requires_grad_()
        terms = _terms(angles, span.rows)
    if span.before or span.after:  # pad would copy in any case
        grad = pad(grad, (span.before, span.after))
    gradients = _term_gradients(grad, Terms(*(term.detach() for term in terms)))
    return 2 * torch.autograd.grad(terms, angles, gradients)[0]


class CutProbabilities(torch.autograd.Function):
    """angles (L, N), N >= 4 -> probabilities start .. stop-1."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, start: int, stop: int) -> Tensor:
        ctx.save_for_backward(angles)
        ctx.span = span = _span(angles.shape[1], start, stop)
        p = _probabilities(_terms(angles, span.rows))
        return p[span.before : len(p) - span.after]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (angles,) = ctx.saved_tensors
        return _gradient(grad, angles, ctx.span), None, None


def cut_probabilities(angles: Tensor) -> Tensor:
    """Probabilities (2**N,) for angles (L, N), N >= 4."""
    return cut_slice(angles, 0, 2 ** angles.shape[1])


@full_precision
def cut_slice(angles: Tensor, start: int, stop: int) -> Tensor:
    """Probabilities start .. stop-1, shape (stop - start,); computes the rows of 2**(b + 2) that contain them."""
    return CutProbabilities.apply(angles, start, stop)
