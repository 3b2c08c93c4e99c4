"""Frozen directions of a weight matrix, from the initial loss gradient or the weight; initial angles.

A frame (P, Q) restricts an update to P core Q^T, P (d_out, R) and Q (d_in, R): the R leading singular vectors of minus
the gradient, so that a core diag(lambda) with equal lambda > 0 is steepest descent. Singular vectors of close singular
values depend on the rounding of the gradient, so such a frame is stored, or computed again and compared by
`frame_hash`. The frame of the base weight has R leading singular vectors of that weight, and is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError, setting

_EXTRA_COLUMNS = 8
_EXACT = 1024  # the smaller width up to which weights and signs are decomposed exactly
_ITERATIONS = 8  # of larger ones, whose singular values decrease slowly

Columns = Callable[[Tensor], Tensor]


def frame_rank_for(d_out: int, d_in: int, frame_rank: int) -> int:
    """The largest power of two that is at most `frame_rank` and fits a (d_out, d_in) matrix."""
    return 1 << (min(d_out, d_in, frame_rank).bit_length() - 1)


def leading_frame(gradient: Tensor, rank: int, seed: int = 0, n_iterations: int = 1) -> tuple[Tensor, Tensor]:
    """The `rank` leading singular vectors of -gradient, by a randomised SVD with `n_iterations` power iterations.

    Args:
        gradient: (d_out, d_in), any floating dtype, finite.
        rank: R, at most min(d_out, d_in).
        seed: Of the random sketch; equal seeds, gradients and libraries give bit-equal frames.
        n_iterations: At least 1.

    Returns:
        left (d_out, R), right (d_in, R): float32 with float16 values, on the gradient's device. The entry of largest
        absolute value in each left vector is positive.

    Raises:
        ConfigError: rank exceeds the matrix.
    """
    smaller = min(gradient.shape)
    if rank > smaller:
        raise ConfigError(
            f"frame rank {rank} exceeds min(d_in, d_out)={smaller}; use a smaller {setting('frame_rank')}"
        )
    matrix = -gradient.detach().float()
    matrix /= matrix.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # its square must not underflow
    n_columns = min(rank + _EXTRA_COLUMNS, smaller)
    sketch = SeededInit(seed).normal("frame", (matrix.shape[1], n_columns)).to(matrix.device)
    basis = _orthonormal(matrix @ sketch)
    for _ in range(n_iterations):
        basis = _orthonormal(matrix @ (matrix.mT @ basis))  # (d_out, C)
    projected = matrix.mT @ basis  # (d_in, C)
    # matrix ~ basis projected^T; the small factors in float64 on the CPU, equal on every device
    right, _, inner = torch.linalg.svd(projected.double().cpu(), full_matrices=False)
    left = basis.double().cpu() @ inner.mT
    sign = _signs(left)
    return _rounded(left * sign, rank, gradient), _rounded(right * sign, rank, gradient)


def singular_frame(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` leading singular vectors and values of a matrix whose singular values may decrease slowly.

    Float64 on the CPU; exact if a width is at most 1024, else by a randomised SVD. The rounding of the vectors to
    float16 removes the differences between machines, except for entries on a rounding boundary and vectors of almost
    equal singular values.

    Args:
        matrix: (d_out, d_in), any floating dtype, finite.
        rank: R, at most min(d_out, d_in).

    Returns:
        left (d_out, R), right (d_in, R), both as in `leading_frame`, and the values (R,), float32.
    """
    if min(matrix.shape) > _EXACT:
        left, right = leading_frame(-matrix, rank, n_iterations=_ITERATIONS)
    else:
        u, _, vt = torch.linalg.svd(matrix.detach().double().cpu(), full_matrices=False)
        sign = _signs(u)
        left, right = _rounded(u * sign, rank, matrix), _rounded(vt.mT * sign, rank, matrix)
    values = torch.linalg.vector_norm(matrix.detach().float() @ right, dim=0)
    return left, right, values


def random_frame(name: str, width: int, rank: int, init: SeededInit) -> Tensor:
    """Control: R random orthonormal directions (width, R), float32, drawn from `init` under `name`."""
    basis, triangle = torch.linalg.qr(init.normal(name, (width, rank)).double())
    return (basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)).float()


def frame_hash(frames: Iterable[Tensor]) -> str:
    """SHA-256 over the frames' float16 bytes, in their order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.detach().cpu().half().contiguous().numpy().astype("<f2").tobytes())
    return digest.hexdigest()


def fit_initial(
    columns_u: Columns,
    columns_v: Columns,
    gradient: Tensor,
    angles_u: Tensor,
    angles_v: Tensor,
    steps: int = 200,
    lr: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Initial angles whose columns align with the gradient: maximizes sum_k |u_k^T G v_k| of each module by Adam.

    Args:
        columns_u: angles (M, P_u) -> (M, d_out, K).
        columns_v: angles (M, P_v) -> (M, d_in, K).
        gradient: G (M, d_out, d_in).
        angles_u, angles_v: Initial angles, (M, P_u) and (M, P_v).

    Returns:
        The fitted angles, with the same shapes and dtypes.
    """
    gradient = gradient / torch.linalg.matrix_norm(gradient, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    fitted = [a.detach().clone().requires_grad_() for a in (angles_u, angles_v)]
    optimizer = torch.optim.Adam(fitted, lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            u, v = columns_u(fitted[0]), columns_v(fitted[1])
            captured = (u * (gradient @ v)).sum(-2).abs().sum()  # (M, K) -> ()
            slopes = torch.autograd.grad(-captured, fitted, allow_unused=True)  # a width of 1 has no angles
            fitted[0].grad, fitted[1].grad = slopes
            optimizer.step()
    return fitted[0].detach(), fitted[1].detach()


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, (d, C), with the matrix's dtype and device."""
    return torch.linalg.qr(matrix.double().cpu())[0].to(matrix)


def _signs(left: Tensor) -> Tensor:
    """+-1 per column, (C,): the entry of largest absolute value becomes positive."""
    largest = left.gather(0, left.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0)


def _rounded(vectors: Tensor, rank: int, like: Tensor) -> Tensor:
    return vectors[:, :rank].half().float().to(like.device)
