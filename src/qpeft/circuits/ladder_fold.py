"""The "fold" route for small circuits: two small matrix products per layer, no gather.

Divide the wires into A (the first a) and B (the other b) and store the state as a matrix psi (2**a, 2**b).
The ladder is ladder_B . CNOT(a-1 -> a) . ladder_A, and CNOT(a-1 -> a) before ladder_B reverses all of B
where A's last bit is 1. Both inner ladders only permute rows of the small rotation matrices: with s = A's
last bit

    Y = W_A psi,    psi_new[s] = Y[s] W_B[s]^T

The rows of psi are stored with wire a-1 as their most significant bit: the two sectors s are then contiguous
and the second step is one batched product. The small states of all layers are saved, so that the
gradients of all angles are two batched products at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source, turn_tables
from qpeft.circuits.numerics import cached_tables, full_precision, once_differentiable


class _Tables(NamedTuple):
    kron: KronTables
    turns_a: Tensor  # (4**a, a)
    turns_b: Tensor  # (4**b, b)


@cached_tables()
def _tables(n_qubits: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    a = n_qubits // 2
    wires_a, wires_b = (a - 1, *range(a - 1)), tuple(range(a, n_qubits))
    gray_b = ladder_source(n_qubits - a)
    top_b = 2 ** (n_qubits - a - 1)
    blocks = [
        Block(wires_a, _rotated_ladder_source(a)),
        Block(wires_b, torch.cat([gray_b, gray_b ^ top_b])),  # s = 0, then s = 1
    ]
    turns = (turn_tables(wires, dtype, device) for wires in (wires_a, wires_b))
    return _Tables(kron_tables(blocks, n_qubits, device), *turns)


def _rotated_ladder_source(n: int) -> Tensor:
    """`ladder_source(n)` when the last wire is written as the most significant bit."""
    place = torch.arange(2**n)
    index = ((place << 1) & (2**n - 1)) | (place >> (n - 1))
    source = index ^ (index >> 1)
    return (source >> 1) | ((source & 1) << (n - 1))


def _matrices(angles: Tensor) -> tuple[Tensor, Tensor]:
    """W_A (L, 2**a, 2**a) and W_B (L, 2, 2**b, 2**b) of every layer."""
    w_a, w_b = kron_matrices(angles, _tables(angles.shape[1], angles.dtype, angles.device).kron)
    rows, columns = w_b.shape[1:]
    return w_a, w_b.view(-1, 2, rows // 2, columns)


def _states(w_a: Tensor, w_b: Tensor) -> Iterator[Tensor]:
    """The state (2**a, 2**b) before the first layer and after each."""
    rows, columns = w_a.shape[-1], w_b.shape[-1]
    psi = w_a.new_zeros(rows, columns)
    psi[0, 0] = 1
    yield psi
    for a, b in zip(w_a.unbind(), w_b.mT.unbind(), strict=True):
        psi = torch.bmm((a @ psi).view(2, -1, columns), b).view(rows, columns)
        yield psi


def _pull_back(lam: Tensor, w_a: Tensor, w_b: Tensor) -> Tensor:
    """Gradients (L, 2**a, 2**b) with respect to the state before each layer, from that of the last state."""
    rows, columns = lam.shape
    lams = []
    for a, b in zip(reversed(w_a.mT.unbind()), reversed(w_b.unbind()), strict=True):
        lam = a @ torch.bmm(lam.view(2, -1, columns), b).view(rows, columns)
        lams.append(lam)
    return torch.stack(lams[::-1])


def _in_wire_order(psi: Tensor) -> Tensor:
    """psi (2**a, 2**b) with wire a-1 first -> (2**(a-1), 2, 2**b) with the wires in order."""
    return psi.view(2, -1, psi.shape[-1]).transpose(0, 1)


def _probabilities(psi: Tensor) -> Tensor:
    return _in_wire_order(psi.square()).reshape(-1)


@full_precision
def _gradient(grad: Tensor, states: Tensor, w_a: Tensor, w_b: Tensor) -> Tensor:
    """Gradient (L, N) from d loss / d p (2**N,) and the states (L+1, 2**a, 2**b)."""
    tables = _tables((grad.numel() - 1).bit_length(), grad.dtype, grad.device)
    psi, last = states[:-1], _in_wire_order(states[-1])
    lam = last * grad.reshape(last.shape)  # half of d loss / d psi; the other 2 cancels the 1/2 of RY'
    lam = _pull_back(lam.transpose(0, 1).reshape(states[-1].shape), w_a, w_b)
    of_a = torch.bmm(lam, psi.mT).flatten(1) @ tables.turns_a  # (L, a)
    of_b = torch.bmm(lam.mT, psi).flatten(1) @ tables.turns_b  # (L, b)
    return torch.cat([of_a, of_b], dim=1)


class FoldProbabilities(torch.autograd.Function):
    """angles (L, N), N >= 2 -> probabilities (2**N,).

    Without `setup_context`, which torch.func would need: it would take a tenth of the time at ten qubits.
    """

    @staticmethod
    def forward(ctx: Any, angles: Tensor) -> Tensor:
        w_a, w_b = _matrices(angles)
        *_, last = states = list(_states(w_a, w_b))
        ctx.save_for_backward(torch.stack(states), w_a, w_b)
        return _probabilities(last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradient(grad, *ctx.saved_tensors)


@full_precision
def fold_probabilities(angles: Tensor) -> Tensor:
    """Probabilities (2**N,) for angles (L, N) with N >= 2; stores no states when no gradient is needed."""
    if torch.is_grad_enabled() and angles.requires_grad:
        return FoldProbabilities.apply(angles)
    *_, last = _states(*_matrices(angles))
    return _probabilities(last)
