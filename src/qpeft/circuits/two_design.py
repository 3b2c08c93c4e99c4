"""Orthonormal columns from Quantum-PEFT's circuit (the `two_design` ansatz)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.ansatz import count_angles, two_design_pairs
from qpeft.circuits.precision import full_precision
from qpeft.errors import ConfigError, UnsupportedTypeError


def two_design_columns(
    angles: Tensor, n_qubits: int, n_layers: int, columns: Sequence[int] | Tensor, signs: Tensor | None = None
) -> Tensor:
    """The columns `columns` of the orthogonal matrix of the `two_design` circuit.

    `angles` (P,) or (M, P), float32 or float64, flat in the order in which they act, P = (2L+1) N - 2L; `columns`
    are K basis indices, wire 0 the most significant bit. Gives (2**N, K) or (M, 2**N, K) with orthonormal columns
    in the angles' dtype and on their device; no qubits give [[1]]. Angles have period 4 pi: 2 pi negates every column.

    `signs` (2L, 2**N) of +-1 replaces the CZ gates of step a, step b of the first layer, step a of the second, ...
    by these diagonals: random signs and ones are the classical twins of the circuit.

    Raises UnsupportedTypeError for another dtype and ConfigError for a wrong number of angles, qubits, layers or
    signs, for columns outside 0 .. 2**N - 1, and for angles that are not finite.
    """
    indices = columns.tolist() if isinstance(columns, Tensor) else list(columns)
    _check(angles, n_qubits, n_layers, indices, signs)
    batch = angles if angles.ndim == 2 else angles[None]
    result = _columns(batch, n_qubits, n_layers, indices, signs)
    return result if angles.ndim == 2 else result[0]


@full_precision
def _columns(angles: Tensor, n_qubits: int, n_layers: int, columns: list[int], signs: Tensor | None) -> Tensor:
    state = torch.eye(2**n_qubits, dtype=angles.dtype, device=angles.device)[:, columns].expand(len(angles), -1, -1)
    turns = iter(angles.unbind(1))
    for wire in range(n_qubits):
        state = _turn(state, wire, next(turns))
    for step in range(2 * n_layers):
        pairs = two_design_pairs(n_qubits, step % 2)
        diagonal = _cz_signs(n_qubits, pairs) if signs is None else signs[step]
        state = state * diagonal.to(state)[:, None]
        for wire in (wire for pair in pairs for wire in pair):
            state = _turn(state, wire, next(turns))
    return state + angles.sum(1)[:, None, None] * 0 if n_qubits == 0 else state


def _turn(state: Tensor, wire: int, angle: Tensor) -> Tensor:
    zero, one = state.unflatten(1, (2**wire, 2, -1)).unbind(2)
    c, s = (angle / 2).cos()[:, None, None, None], (angle / 2).sin()[:, None, None, None]
    return torch.stack([c * zero - s * one, s * zero + c * one], 2).flatten(1, 3)


def _cz_signs(n_qubits: int, pairs: list[tuple[int, int]]) -> Tensor:
    index = torch.arange(2**n_qubits, device="cpu")
    both = sum(((index >> (n_qubits - 1 - i)) & (index >> (n_qubits - 1 - j)) & 1 for i, j in pairs), 0 * index)
    return 1 - 2 * (both & 1)


def _check(angles: Tensor, n_qubits: int, n_layers: int, columns: list[int], signs: Tensor | None) -> None:
    if angles.dtype not in (torch.float32, torch.float64):
        raise UnsupportedTypeError(f"angles must be float32 or float64, got {angles.dtype}")
    expected = count_angles("two_design", n_qubits, n_layers)
    if angles.ndim not in (1, 2) or angles.shape[-1] != expected:
        raise ConfigError(
            f"{n_qubits} qubits and {n_layers} layers need angles of shape ({expected},) or (M, {expected}), "
            f"got {tuple(angles.shape)}"
        )
    if not columns or not 0 <= min(columns) <= max(columns) < 2**n_qubits:
        raise ConfigError(f"columns must be one or more indices from 0 to {2**n_qubits - 1}, got {columns}")
    if signs is not None and signs.shape != (2 * n_layers, 2**n_qubits):
        raise ConfigError(f"signs must have shape ({2 * n_layers}, {2**n_qubits}), got {tuple(signs.shape)}")
    if not math.isfinite(angles.detach().sum().item()) and not torch.isfinite(angles).all():
        raise ConfigError("circuit angles contain NaN or Inf")
