"""Block-diagonal rotations by the Cayley transform of skew-symmetric matrices.

    cay(S) = (I - S)(I + S)^-1        orthogonal for every skew S, without the eigenvalue -1

A rotation Q is computed as the change Q - I, which is exactly 0 for S = 0 and keeps small angles in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from qpeft.circuits.lie import lie_matrix


def skew(v: Tensor) -> Tensor:
    """The matrix (..., n, n) with v (..., n(n-1)/2) above its diagonal, row by row, and -v below."""
    n = (1 + math.isqrt(1 + 8 * v.shape[-1])) // 2
    lower = lie_matrix(v, n, n)
    return lower.mT - lower


def cayley_change(s: Tensor) -> Tensor:
    """cay(S) - I = -2 (I + S)^-1 S of skew matrices (..., n, n), in their dtype."""
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return -2 * torch.linalg.solve(eye + s, s)


def block_change(x: Tensor, parts: Sequence[Tensor], size: int) -> Tensor:
    """D x for a block-diagonal D; shape and dtype of x (..., d).

    x begins with N slices of `size` values. Each of the parts (N, m, m) acts on the next m values
    of every slice; D is 0 on the others, and on the rest of x.
    """
    n_blocks = len(parts[0])
    slices = x[..., : n_blocks * size].unflatten(-1, (n_blocks, size))  # (..., N, size)
    start = 0
    changes = []
    for part in parts:
        piece = slices[..., start : start + part.shape[-1]]  # (..., N, m)
        changes.append(torch.einsum("nij,...nj->...ni", part, piece))
        start += part.shape[-1]
    change = pad(torch.cat(changes, -1), (0, size - start)).flatten(-2)  # (..., N size)
    return pad(change, (0, x.shape[-1] - n_blocks * size))  # (..., d)
