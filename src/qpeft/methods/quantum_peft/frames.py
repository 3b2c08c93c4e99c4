"""Frozen directions of a weight matrix, from the initial loss gradient, its signs, the weight, or
drawn at random.

A frame (P, Q) restricts an update to P core Q^T, P (d_out, R) and Q (d_in, R): the R leading
singular vectors of minus the gradient, so that a core diag(lambda) with equal lambda > 0 is
steepest descent. Singular vectors of close singular values depend on the rounding of the gradient,
so such a frame is stored. That of the base weight is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError

_EXTRA_COLUMNS = 8
_EXACT = 1024  # the smaller width up to which weights and signs are decomposed exactly
_ITERATIONS = 8  # of larger ones, whose singular values decrease slowly


def frame_rank_for(width: int, frame_rank: int) -> int:
    """The largest power of two that is at most `frame_rank` and the smaller `width` of a matrix."""
    return 1 << (min(width, frame_rank).bit_length() - 1)


def leading_frame(gradient: Tensor, rank: int, n_iterations: int = 1) -> tuple[Tensor, Tensor]:
    """The `rank` leading singular vectors of -gradient (d_out, d_in), by a randomised SVD with
    power iterations.

    Returns left (d_out, R) and right (d_in, R): float32 with float16 values, on the gradient's
    device. The entry of largest absolute value in each left vector is positive. Equal gradients and
    libraries give bit-equal frames.
    """
    matrix = -gradient.detach().float()
    # its square must not underflow
    matrix /= matrix.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    n_columns = min(rank + _EXTRA_COLUMNS, *matrix.shape)
    sketch = SeededInit(0).normal("frame", (matrix.shape[1], n_columns)).to(matrix.device)
    basis = _orthonormal(matrix @ sketch)
    for _ in range(n_iterations):
        basis = _orthonormal(matrix @ (matrix.mT @ basis))  # (d_out, C)
    # matrix ~ basis projected^T; the small factors in float64 on the CPU, equal on every device
    projected = (matrix.mT @ basis).cpu().double()  # (d_in, C)
    right, _, inner = torch.linalg.svd(projected, full_matrices=False)
    return _signed(basis.cpu().double() @ inner.mT, right, rank, gradient)


def singular_frame(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` leading singular vectors of a matrix whose singular values may decrease slowly, as
    `leading_frame`.

    Float64 on the CPU; exact if a width is at most 1024, else by a randomised SVD. The rounding of
    the vectors to float16 removes the differences between machines, except for entries on a
    rounding boundary and vectors of almost equal singular values.
    """
    if min(matrix.shape) > _EXACT:
        return leading_frame(-matrix, rank, _ITERATIONS)
    u, _, vt = torch.linalg.svd(matrix.detach().cpu().double(), full_matrices=False)
    return _signed(u, vt.mT, rank, matrix)


def core_frame(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """As `singular_frame`, the left vectors multiplied by the singular values: U S core V^T, which
    is LoRA-XS.
    """
    left, right = singular_frame(weight, rank)
    singular_values = torch.linalg.vector_norm(weight.detach().float() @ right, dim=0)  # (R,)
    return left * singular_values, right


def base_weight(name: str, layer: Any) -> Tensor:
    """The base weight of an adapted layer, (d_out, d_in).

    Raises ConfigError if its singular vectors cannot be computed.
    """
    weight = layer.get_base_layer().weight
    if (
        weight.is_meta
        or not weight.is_floating_point()
        or layer.merged
        or not torch.isfinite(weight).all()
    ):
        raise ConfigError(
            f"frame='weights' needs the weight of {name}: in memory, in a floating-point format,"
            " without NaN or Inf, and without a merged adapter (call model.unmerge_adapter()); or"
            " use frame='gradient'"
        )
    return weight.mT if layer.fan_in_fan_out else weight


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, (d, C), with the matrix's dtype and device."""
    return torch.linalg.qr(matrix.cpu().double())[0].to(matrix)


def _signed(left: Tensor, right: Tensor, rank: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first `rank` columns of both; the entry of largest absolute value in each left column
    becomes positive.
    """
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))  # (1, C)
    sign = torch.where(largest < 0, -1.0, 1.0)
    left = (left * sign)[:, :rank].half().float()
    right = (right * sign)[:, :rank].half().float()
    return left.to(like.device), right.to(like.device)
