"""Precision, shape, size and finiteness of the tensors of the simulators."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from qpeft.errors import ConfigError, TrainingError, UnsupportedTypeError

P = ParamSpec("P")
R = TypeVar("R")

MOST_ELEMENTS = 2**32  # 16 GiB in float32; the system ends a process that needs far more memory than there is


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


def cached_tables(maxsize: int = 64) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Cache the tensors that a function of sizes, dtype and device makes.

    All callers use the same tensors, so these are independent of the first caller: of its default device, and of its
    `torch.inference_mode()`, whose tensors cannot be used in training.
    """

    def cached(function: Callable[P, R]) -> Callable[P, R]:
        @lru_cache(maxsize)
        @wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> R:
            with torch.device("cpu"), torch.inference_mode(False):
                return function(*args, **kwargs)

        return cast(Callable[P, R], make)

    return cached


def once_differentiable(backward: Callable[..., R]) -> Callable[..., R]:
    """`backward(ctx, *gradients)` of an autograd function without second derivatives: it raises under create_graph.

    torch's decorator of this name raises too late: `torch.autograd.grad` can give a part of a second derivative before.
    """

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> R:
        if torch.is_grad_enabled():  # create_graph
            raise TrainingError(
                "this gradient cannot be differentiated again, because a closed form computes it; differentiate "
                "without create_graph=True"
            )
        return backward(ctx, *gradients)

    return run


def has_nonfinite(angles: Tensor) -> bool:
    """Whether an angle is NaN or Inf; always False on an accelerator, where the check is skipped.

    Reading a value back from an accelerator waits for all queued work, in every step. A NaN still reaches the loss.
    """
    if angles.device.type != "cpu" or math.isfinite(angles.detach().sum().item()):  # one cheap pass
        return False
    return not torch.isfinite(angles).all()  # otherwise only the sum overflowed


def check_elements(n: int, what: str, advice: str) -> None:
    """Raise ConfigError if a tensor of n elements is too large to simulate `what`, before any of it is computed."""
    if n > MOST_ELEMENTS:
        raise ConfigError(
            f"{what} need a tensor of about 2^{(n - 1).bit_length()} elements, more than the simulator's limit of "
            f"2^{MOST_ELEMENTS.bit_length() - 1}; {advice}"
        )


def check_angles(angles: Tensor, n_angles: int, size: str) -> None:
    """Raise UnsupportedTypeError or ConfigError unless `angles` are n_angles finite floats, or rows of them."""
    if angles.dtype not in (torch.float32, torch.float64):
        raise UnsupportedTypeError(f"angles must be float32 or float64, got {angles.dtype}")
    if angles.ndim not in (1, 2) or angles.shape[-1] != n_angles:
        raise ConfigError(f"{size} need angles of shape ({n_angles},) or (M, {n_angles}), got {tuple(angles.shape)}")
    if has_nonfinite(angles):
        raise ConfigError("circuit angles contain NaN or Inf")
