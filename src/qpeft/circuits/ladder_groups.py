"""The "groups" route for large circuits: O(2**N) memory at any depth.

The wires are divided into small groups. One matrix product per group rotates it and moves its axis from the
front of the state to the back, so after all groups the wires are in order again. The ladder is a gather.
Only the angles and the final state are saved: the backward pass applies the inverse layers to the state and its
gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source, turn_tables
from qpeft.circuits.numerics import cached_tables, full_precision, once_differentiable

MAX_GROUP = {torch.float32: 5, torch.float64: 4}  # wires; measured: larger groups cost more than they save


class _Tables(NamedTuple):
    kron: KronTables
    turns: tuple[Tensor, ...]  # per group (4**k, k)


@cached_tables()
def _tables(n_qubits: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    groups = torch.arange(n_qubits).tensor_split(-(-n_qubits // MAX_GROUP[dtype]))
    wires = [tuple(group.tolist()) for group in groups]
    blocks = [Block(group, torch.arange(2 ** len(group))) for group in wires]
    return _Tables(kron_tables(blocks, n_qubits, device), tuple(turn_tables(group, dtype, device) for group in wires))


@cached_tables(maxsize=4)  # bounded: these are as long as the state
def _gathers(n_qubits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The ladder is new = old[source], its inverse new = old[inverse]; both (2**N,)."""
    source = ladder_source(n_qubits, device)
    return source, source.argsort()


def _layers(angles: Tensor) -> list[tuple[Tensor, ...]]:
    """For each layer the groups' matrices (2**k, 2**k)."""
    matrices = kron_matrices(angles, _tables(angles.shape[1], angles.dtype, angles.device).kron)
    return list(zip(*(matrix.unbind() for matrix in matrices), strict=True))


def _turn_front(psi: Tensor, matrix: Tensor) -> Tensor:
    """Apply `matrix` (2**k, 2**k) to the first k wires of psi (2**N,) and make them the last."""
    return (psi.view(len(matrix), -1).mT @ matrix.mT).view(-1)


def _state(angles: Tensor) -> Tensor:
    """State (2**N,) before the last ladder."""
    source, _ = _gathers(angles.shape[1], angles.device)
    psi = angles.new_zeros(len(source))
    psi[0] = 1
    for index, layer in enumerate(_layers(angles)):
        psi = psi.index_select(0, source) if index else psi
        for matrix in layer:
            psi = _turn_front(psi, matrix)
    return psi


@full_precision
def _gradient(grad: Tensor, angles: Tensor, psi: Tensor) -> Tensor:
    """Gradient (L, N) from d loss / d p and the state before the last ladder, both (2**N,).

    A group's <lam, J psi> may be computed while other groups of its layer are undone: their rotations commute with J.
    """
    _, inverse = _gathers(angles.shape[1], angles.device)
    turns = _tables(angles.shape[1], angles.dtype, angles.device).turns
    lam = psi * grad.index_select(0, inverse)  # half of d loss / d psi; the other 2 cancels the 1/2 of RY'
    rows = []
    for index, layer in enumerate(reversed(_layers(angles))):
        if index:
            psi, lam = psi.index_select(0, inverse), lam.index_select(0, inverse)
        products = []
        for matrix, turn in zip(layer, turns, strict=True):
            front = lam.view(len(matrix), -1) @ psi.view(len(matrix), -1).mT
            products.append(front.flatten() @ turn)
            psi, lam = _turn_front(psi, matrix.mT), _turn_front(lam, matrix.mT)
        rows.append(torch.cat(products))
    return torch.stack(rows[::-1])


class GroupProbabilities(torch.autograd.Function):
    """angles (L, N) -> probabilities (2**N,)."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor) -> Tensor:
        psi = _state(angles)
        ctx.save_for_backward(angles, psi)
        source, _ = _gathers(angles.shape[1], angles.device)
        return psi.square().index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradient(grad, *ctx.saved_tensors)


@full_precision
def group_probabilities(angles: Tensor) -> Tensor:
    """Probabilities (2**N,) for angles (L, N)."""
    return GroupProbabilities.apply(angles)
