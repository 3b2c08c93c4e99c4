"""Precision and finiteness of what the simulators compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Run `function(tensor, ...)` in the tensor's own dtype: autocast would round the state to bfloat16."""

    @wraps(function)
    def run(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        device = tensor.device.type
        if not torch.is_autocast_enabled(device):
            return function(tensor, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(tensor, *args, **kwargs)

    return run


def has_nonfinite(angles: Tensor) -> bool:
    """Whether an angle is NaN or Inf; always False on an accelerator, where the check is skipped.

    Reading a value back from an accelerator waits for all queued work, in every step. A NaN still reaches the loss.
    """
    if angles.device.type != "cpu" or math.isfinite(angles.detach().sum().item()):  # one cheap pass
        return False
    return not torch.isfinite(angles).all()  # otherwise only the sum overflowed
