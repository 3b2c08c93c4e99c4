"""Many states of QPA's circuit at once, each with its own angles, for statistics over random circuits.

The wires are divided into two halves. A layer is one batch of products with the Kronecker matrices of its rotations on
each half, followed by the gather of the CNOT ladder.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source
from qpeft.circuits.numerics import full_precision


@cache
def _tables(n_qubits: int, device: torch.device) -> KronTables:
    with torch.device("cpu"):  # cached: independent of the caller's default device
        halves = torch.arange(n_qubits).tensor_split(2)
        blocks = [Block(tuple(half.tolist()), torch.arange(2 ** len(half))) for half in halves]
        return kron_tables(blocks, n_qubits, device)


@full_precision
def ladder_states(angles: Tensor) -> Tensor:
    """Final states (S, 2**N), real amplitudes, of `ry_ladder` circuits with angles (S, L, N), from |0...0>.

    Wire 0 is the most significant bit of the basis index; dtype and device are the angles'. Differentiable by plain
    autograd, which stores the states of all layers.
    """
    samples, _, n_qubits = angles.shape
    tables, source = _tables(n_qubits, angles.device), ladder_source(n_qubits, angles.device)
    (rows, _), (columns, _) = tables.shapes
    psi = angles.new_zeros(samples, rows, columns)
    psi[:, 0, 0] = 1
    for layer in angles.unbind(1):
        first, second = kron_matrices(layer, tables)
        turned = torch.bmm(torch.bmm(first, psi), second.mT)
        psi = turned.view(samples, -1).index_select(1, source).view(samples, rows, columns)
    return psi.view(samples, -1)
