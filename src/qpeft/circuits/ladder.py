"""Exact probabilities of QPA's default circuit (the `ry_ladder` ansatz), by the fastest of three routes."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.kron import Block, KronTables, kron_matrices, kron_tables, ladder_source
from qpeft.circuits.ladder_cut import cut_probabilities, cut_slice
from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.circuits.numerics import cached_tables, check_elements, full_precision, has_nonfinite
from qpeft.errors import ConfigError

# measured with benchmarks/bench.py --only circuits large_circuits
FOLD_QUBITS = range(2, 13)  # a single qubit cannot be divided
CUT_FROM = 15  # qubits


def probabilities(angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states of the `ry_ladder` circuit with angles (L, N): equation (QPA-1).

    Wire 0 is the most significant bit of the basis index. The result has the angles' dtype (float32 or
    float64) and device. Its gradient is exact (adjoint method); there is no second derivative.

    Raises ConfigError for another shape or dtype, for more than 32 qubits, and on the CPU for angles that are not
    finite.
    """
    _check(angles)
    _check_state(angles.shape[1])
    if angles.shape[1] in FOLD_QUBITS:
        return fold_probabilities(angles)
    return cut_probabilities(angles) if _cut_is_faster(angles) else group_probabilities(angles)


def probabilities_slice(angles: Tensor, start: int, stop: int) -> Tensor:
    """`probabilities(angles)[start:stop]`, shape (stop - start,), without computing the rest where that is faster.

    For N >= 15 and L <= N/2 + 1, time and memory are proportional to the slice, in steps of about 2**(N/2 + 2)
    probabilities, plus terms of size 2**(N/2 + L): a circuit whose 2**N probabilities exceed the memory can be
    evaluated and trained in parts. For other sizes all probabilities are computed.

    Raises ConfigError as `probabilities`, for a slice that is empty or not within 0 .. 2**N, and for a slice or terms
    of more than 2**32 elements.
    """
    _check(angles)
    n_layers, n_qubits = angles.shape
    if _cut_is_faster(angles):
        half = n_qubits - n_qubits // 2
        needed = max(stop - start, 2 ** (half + 2), 2 ** (half + n_layers - 1))
        what = f"slices of the probabilities of {n_qubits} qubits and {n_layers} layers"
        check_elements(needed, what, "use smaller slices, fewer qubits or fewer layers")
    else:
        _check_state(n_qubits)
    total = 2**n_qubits
    if not 0 <= start < stop <= total:
        raise ConfigError(f"a slice must have 0 <= start < stop <= {total}, got start={start}, stop={stop}")
    return cut_slice(angles, start, stop) if _cut_is_faster(angles) else probabilities(angles)[start:stop]


def _cut_is_faster(angles: Tensor) -> bool:
    """Whether the 2**(L-2) terms of the cut are few enough."""
    n_layers, n_qubits = angles.shape
    return n_qubits >= CUT_FROM and n_layers <= n_qubits // 2 + 1


def _check_state(n_qubits: int) -> None:
    advice = f"use fewer qubits, or probabilities_slice with at most {n_qubits // 2 + 1} layers"
    check_elements(2**n_qubits, f"the probabilities of {n_qubits} qubits", advice)


def _check(angles: Tensor) -> None:
    if angles.ndim != 2 or 0 in angles.shape:
        raise ConfigError(f"angles must have shape (n_layers, n_qubits), both at least 1, got {tuple(angles.shape)}")
    if angles.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"angles must be float32 or float64, got {angles.dtype}; cast them, for example angles.float()"
        )
    if has_nonfinite(angles):
        layer, wire = (~torch.isfinite(angles)).nonzero()[0].tolist()
        raise ConfigError(f"circuit angles contain NaN or Inf at layer {layer}, wire {wire}")


@cached_tables()
def _half_tables(n_qubits: int, device: torch.device) -> KronTables:
    halves = torch.arange(n_qubits).tensor_split(2)
    blocks = [Block(tuple(half.tolist()), torch.arange(2 ** len(half))) for half in halves]
    return kron_tables(blocks, n_qubits, device)


@full_precision
def ladder_states(angles: Tensor) -> Tensor:
    """Final states (S, 2**N), real amplitudes, of `ry_ladder` circuits with angles (S, L, N), from |0...0>.

    For statistics over random circuits. Wire 0 is the most significant bit of the basis index; dtype and device are the
    angles'. Differentiable by plain autograd, which stores the states of all layers. A layer is one batch of products
    with the Kronecker matrices of two halves of the wires, followed by the gather of the CNOT ladder.
    """
    samples, _, n_qubits = angles.shape
    tables, source = _half_tables(n_qubits, angles.device), ladder_source(n_qubits, angles.device)
    (rows, _), (columns, _) = tables.shapes
    psi = angles.new_zeros(samples, rows, columns)
    psi[:, 0, 0] = 1
    for layer in angles.unbind(1):
        first, second = kron_matrices(layer, tables)
        turned = torch.bmm(torch.bmm(first, psi), second.mT)
        psi = turned.view(samples, -1).index_select(1, source).view(samples, rows, columns)
    return psi.view(samples, -1)
