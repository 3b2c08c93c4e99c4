"""Derivatives by finite differences, independent of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_POINTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}  # relative error (step * frequency)^4 / 30


@torch.no_grad()
def slope(
    value: Callable[[], Tensor], parameters: Sequence[Tensor], directions: Sequence[Tensor], step: float
) -> float:
    """The derivative of the scalar `value()` along `directions`; `parameters` are restored afterwards."""
    kept = [parameter.clone() for parameter in parameters]
    total = 0.0
    for point, weight in _POINTS.items():
        for parameter, start, direction in zip(parameters, kept, directions, strict=True):
            parameter.copy_(start + point * step * direction)
        total += weight * value().item() / step
    for parameter, start in zip(parameters, kept, strict=True):
        parameter.copy_(start)
    return total
