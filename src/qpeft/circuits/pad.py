"""Orthonormal columns of any width from one larger circuit, cut to size and made orthonormal again.

X = the first N rows of the circuit's columns, U = X R^-1 with X^T X = R^T R (Cholesky). The Gram matrix, R and its
inverse are in float64: in float32 the columns of wide matrices would be orthonormal to 1e-4 only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.two_design import two_design_columns
from qpeft.errors import CircuitError

MAX_CONDITION = 1e6


def pad_columns(
    angles: Tensor, width: int, n_layers: int, columns: Sequence[int] | Tensor, signs: Tensor | None
) -> Tensor:
    """(M, P) -> (M, N, K); `columns` are basis states of the circuit on ceil(log2 N) wires.

    Raises CircuitError if the cut columns are linearly dependent or nearly so.
    """
    cut = two_design_columns(angles, (width - 1).bit_length(), n_layers, columns, signs)[:, :width]
    gram = cut.double().mT @ cut.double()  # (M, K, K)
    factor, failed = torch.linalg.cholesky_ex(gram, upper=True)
    _check_condition(gram, width, bool(failed.any()))
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return cut @ torch.linalg.solve_triangular(factor, eye, upper=True).to(cut)


def _check_condition(gram: Tensor, width: int, failed: bool) -> None:
    values = torch.linalg.eigvalsh(gram.detach())  # ascending
    condition = (values[:, -1] / values[:, 0].clamp(min=0)).nan_to_num(nan=math.inf, posinf=math.inf).max().item()
    if failed or condition > MAX_CONDITION:
        raise CircuitError(
            f"pad construction for width {width} is nearly rank deficient (condition {condition:.1e}); "
            "redraw the angles or use construction='qsd'"
        )
