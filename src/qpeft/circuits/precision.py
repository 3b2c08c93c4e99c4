"""Keeping the simulators exact inside mixed-precision training."""

from __future__ import annotations

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
