"""Exact probabilities of QPA's circuit (the `ry_ladder` ansatz), by the faster of two routes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpeft.circuits.ladder_fold import fold_probabilities
from qpeft.circuits.ladder_groups import group_probabilities
from qpeft.errors import ConfigError

FOLD_QUBITS = range(2, 13)  # measured with benchmarks/circuit_speed.py; a single qubit cannot be cut in two


def probabilities(angles: Tensor) -> Tensor:
    """Probabilities (2**N,) of the basis states of the `ry_ladder` circuit with angles (L, N).

    Wire 0 is the most significant bit of the basis index. The result has the angles' dtype (float32 or
    float64) and device. Its gradient is exact (adjoint method); there is no second derivative.

    Raises ConfigError for another shape or dtype, and for angles that are not finite.
    """
    _check(angles)
    return fold_probabilities(angles) if angles.shape[1] in FOLD_QUBITS else group_probabilities(angles)


def _check(angles: Tensor) -> None:
    if angles.ndim != 2 or 0 in angles.shape:
        raise ConfigError(f"angles must have shape (n_layers, n_qubits), both at least 1, got {tuple(angles.shape)}")
    if angles.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"angles must be float32 or float64, got {angles.dtype}; cast them, for example angles.float()"
        )
    if not math.isfinite(angles.detach().sum().item()):  # one cheap pass; a finite sum has only finite terms
        _check_finite(angles)


def _check_finite(angles: Tensor) -> None:
    broken = (~torch.isfinite(angles)).nonzero().tolist()
    if broken:  # otherwise only the sum overflowed
        layer, wire = broken[0]
        raise ConfigError(f"circuit angles contain NaN or Inf at layer {layer}, wire {wire}")
