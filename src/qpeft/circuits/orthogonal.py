"""Orthonormal columns of any width from few angles.

A power of two is one circuit. For other widths, `qsd` is the cosine-sine recursion of circuits (`cosine_sine`), and
`pad` a larger circuit cut to size: X = the first N rows of the circuit's columns, made orthonormal again by
U = X R^-1 with X^T X = R^T R (Cholesky). The Gram matrix, R and its inverse are in float64: in float32 the columns of
wide matrices would be orthonormal to 1e-4 only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.circuits.cosine_sine import Signs, cosine_sine_columns
from qpeft.circuits.counting import check_rank, count_orthogonal, resolve_construction
from qpeft.circuits.numerics import check_angles, check_elements, full_precision
from qpeft.circuits.two_design import two_design_columns
from qpeft.errors import CircuitError

MAX_CONDITION = 1e6


def orthogonal_columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    construction: str = "auto",
    signs: Signs | None = None,
) -> Tensor:
    """K orthonormal columns of `width` rows, for every value of the angles.

    `angles` (P,) or (M, P), float32 or float64, P = `count_angles(construction, n_layers=n_layers, width=width)`;
    `columns` are K basis indices on ceil(log2 N) wires for `pad`, on floor(log2 N) wires otherwise. Returns (N, K) or
    (M, N, K) in the angles' dtype and on their device. A power of two is one circuit. Other widths: `qsd` is the
    cosine-sine recursion, `qsd_full` the same with angles that never act, `pad` a larger circuit cut to size, `auto`
    is `qsd` for two or three set bits of the width and `pad` for more.

    `signs`: n_qubits -> (2L, 2**n_qubits) of +-1, which replace the CZ gates in every circuit.

    Raises ConfigError and UnsupportedTypeError for unusable arguments, CircuitError if `pad` finds nearly
    dependent columns.
    """
    check_angles(angles, count_orthogonal(width, n_layers, construction), f"width {width} and {n_layers} layers")
    check_rank(len(columns), width, construction)
    check_elements(len(columns) * width, f"{len(columns)} columns of {width} rows", "use fewer rows or columns")
    batch = angles if angles.ndim == 2 else angles[None]
    result = _columns(batch, width, n_layers, columns, resolve_construction(width, construction), signs)
    return result if angles.ndim == 2 else result[0]


@full_precision
def _columns(
    angles: Tensor,
    width: int,
    n_layers: int,
    columns: Sequence[int] | Tensor,
    name: str,
    signs: Signs | None,
) -> Tensor:
    if name.startswith("qsd"):
        return cosine_sine_columns(angles, width, n_layers, columns, signs, with_v2=name == "qsd_full")
    n_qubits = (width - 1).bit_length()
    found = two_design_columns(angles, n_qubits, n_layers, columns, None if signs is None else signs(n_qubits))
    return _cut_to_size(found, width) if name == "pad" else found


def _cut_to_size(columns: Tensor, width: int) -> Tensor:
    """(M, 2**q, K) -> (M, N, K). Raises CircuitError if the cut columns are linearly dependent or nearly so."""
    cut = columns[:, :width]
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
