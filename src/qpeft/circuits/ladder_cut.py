"""The "cut" route for large, shallow circuits: any rows of the probabilities, and never the whole state.

With the terms of `ladder_terms`, the rows (r, q, s) of A's bits by the columns c of B's are

    x[j] = left[:, q, j] right[j]        (R, columns), the sum over the K terms
    t = turn[q] x
    p[r, q, 0, c] = t[0, r, c]^2        p[r, q, 1, ~c] = t[1, r, c]^2

the last because the CNOT across the cut reverses B. It is done in tiles that stay in the cache, and backward
does it again: memory is p and its gradient, whatever the depth, and cost grows as 2**(N + L).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from qpeft.circuits.ladder_terms import Terms, product_terms
from qpeft.circuits.precision import full_precision

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
    """Every tile once; x and t may be overwritten and are good until the next."""
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
    """The rows of A, without its last two bits, that hold the wanted probabilities, and how many more these hold."""

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
    if span.before or span.after:  # pad would copy it in any case
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
    """Probabilities start .. stop-1, shape (stop - start,); computes the rows of 2**(b + 2) that they lie in."""
    return CutProbabilities.apply(angles, start, stop)
