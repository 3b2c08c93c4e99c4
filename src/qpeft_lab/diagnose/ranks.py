"""Ranks of a matrix from its singular values."""

from __future__ import annotations

import torch
from torch import Tensor

NUMERICAL = 1e-6  # a singular value below this share of the largest is zero


def effective_rank(singular_values: Tensor) -> float:
    """exp(-sum p ln p), p = s / sum s, of singular values s (k,) >= 0: from 1 to k; 0 if all are 0."""
    s = singular_values.double()
    if not (total := s.sum()) > 0:
        return 0.0
    return torch.special.entr(s / total).sum().exp().item()


def numerical_rank(singular_values: Tensor, tolerance: float = NUMERICAL) -> int:
    """The number of singular values (k,) above `tolerance` times the largest."""
    s = singular_values
    return int((s > tolerance * s.max()).sum()) if s.numel() else 0


def stable_rank(singular_values: Tensor) -> float:
    """||W||_F^2 / ||W||_2^2 from the singular values (k,): from 1 to the rank; 0 if all are 0."""
    squares = singular_values.double().square()
    return (squares.sum() / top).item() if squares.numel() and (top := squares.max()) > 0 else 0.0
