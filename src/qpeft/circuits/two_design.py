"""Orthonormal columns from Quantum-PEFT's circuit (the `two_design` ansatz), by the faster of two routes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.counting import count_angles
from qpeft.circuits.numerics import check_angles, check_elements
from qpeft.circuits.two_design_apply import two_design_apply
from qpeft.circuits.two_design_cut import cut_columns
from qpeft.errors import ConfigError


def two_design_columns(
    angles: Tensor, n_qubits: int, n_layers: int, columns: Sequence[int] | Tensor, signs: Tensor | None = None
) -> Tensor:
    """The columns `columns` of the orthogonal matrix of the `two_design` circuit, L = `n_layers`: equation (QP-2).

    `angles` (P,) or (M, P), float32 or float64, flat in the order in which they act, P = (2L+1) N - 2L for
    N = `n_qubits`; `columns` are K basis indices, wire 0 the most significant bit. Returns (2**N, K) or (M, 2**N, K)
    with orthonormal columns in the angles' dtype and on their device; [[1]] for no qubits. Angles have period 4 pi:
    a shift by 2 pi negates every column.

    `signs` (2L, 2**N) of +-1 replaces the CZ gates of step a, step b of the first layer, step a of the second, ...
    by these diagonals: random signs, or ones, are classical controls of the circuit.

    Raises UnsupportedTypeError for another dtype and ConfigError for a wrong number of angles, qubits, layers or
    signs, for columns outside 0 .. 2**N - 1 or of more than 2**32 elements, and on the CPU for angles that are not
    finite.
    """
    indices = tuple(columns.tolist() if isinstance(columns, Tensor) else columns)
    _check(angles, n_qubits, n_layers, indices, signs)
    batch = angles if angles.ndim == 2 else angles[None]
    result = _columns(batch, n_qubits, n_layers, indices, signs)
    return result if angles.ndim == 2 else result[0]


def _columns(angles: Tensor, n_qubits: int, n_layers: int, columns: tuple[int, ...], signs: Tensor | None) -> Tensor:
    few_branches = n_layers <= n_qubits // 2  # the halves are then no larger than the columns, and faster (measured)
    if signs is None and few_branches:
        return cut_columns(angles, n_qubits, n_layers, columns)
    start = angles.new_zeros(2**n_qubits, len(columns))
    start[list(columns), torch.arange(len(columns), device=angles.device)] = 1
    start = start + angles.sum(1)[:, None, None] if n_qubits == 0 else start.expand(len(angles), -1, -1)
    return two_design_apply(angles, n_qubits, n_layers, start, signs)


def _check(angles: Tensor, n_qubits: int, n_layers: int, columns: tuple[int, ...], signs: Tensor | None) -> None:
    check_angles(angles, count_angles("two_design", n_qubits, n_layers), f"{n_qubits} qubits and {n_layers} layers")
    what = f"{len(columns)} columns of {n_qubits} qubits"
    check_elements(len(columns) * 2**n_qubits, what, "use fewer qubits or fewer columns")
    if not columns or not 0 <= min(columns) <= max(columns) < 2**n_qubits:
        raise ConfigError(f"columns must be one or more indices from 0 to {2**n_qubits - 1}, got {list(columns)}")
    if signs is not None and signs.shape != (2 * n_layers, 2**n_qubits):
        raise ConfigError(f"signs must have shape ({2 * n_layers}, {2**n_qubits}), got {tuple(signs.shape)}")
