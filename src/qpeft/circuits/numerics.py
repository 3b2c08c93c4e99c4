"""Validation of the tensors of the simulators, tables that are made once, and matrices on some of
the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from math import isfinite
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from qpeft.errors import ConfigError, TrainingError

F = TypeVar("F", bound=Callable[..., Any])


_FILLED = {  # their dtype is the default one, whatever they are given
    torch.empty,
    torch.eye,
    torch.linspace,
    torch.logspace,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.zeros,
}
_CASTS = {Tensor.bfloat16, Tensor.double, Tensor.float, Tensor.half}  # their dtype is their name


class Float32ByDefault(TorchFunctionMode):
    """Within: new tensors of this thread are float32, whatever `torch.set_default_dtype` has set.

    Another thread that loads a base model in bfloat16 sets it for the whole process, and keeps it
    here: the default of the process is neither changed nor used.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLED and kwargs.get("dtype") is None:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        before = torch.get_default_dtype()
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or result.dtype is torch.float32 or func in _CASTS:
            return result
        if result.dtype not in (before, torch.get_default_dtype()):
            return result
        given, structure = tree_flatten((args, kwargs))
        if any(_has_float_dtype(value) for value in given):  # the dtype follows from it
            return result
        if not any(isinstance(value, Tensor) for value in given):  # such as torch.tensor(0.5)
            return func(*args, **{**kwargs, "dtype": torch.float32})
        # such as half of a tensor of integers
        floats = [value.to(torch.float32) if _is_integer(value) else value for value in given]
        args, kwargs = tree_unflatten(floats, structure)
        return func(*args, **kwargs)


def _has_float_dtype(value: Any) -> bool:
    """Whether it is a dtype, or an array or a tensor of floats."""
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, torch.dtype | np.ndarray | np.generic)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is not torch.bool


@contextmanager
def exact_products() -> Iterator[None]:
    """Within: an NVIDIA GPU rounds no factors of float32 matrix products to TF32, in any thread."""
    global _n_inside, _rounds
    with _counting:
        if _n_inside == 0 and (_rounds := rounds_products()):
            _set_rounding("ieee", "highest")
        _n_inside += 1
    try:
        yield
    finally:
        with _counting:
            _n_inside -= 1
            if _n_inside == 0 and _rounds:
                _set_rounding("none", "high")  # as a more general setting of torch says
                if not rounds_products():
                    _set_rounding("tf32", "high")


_counting = Lock()
_n_inside = 0  # threads in `exact_products`
_rounds = False  # whether products were rounded before


def rounds_products() -> bool:
    """Whether torch rounds the factors of float32 matrix products on NVIDIA GPUs."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)  # before torch 2.9


def _set_rounding(value: str, before_2_9: str) -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = value
    else:
        torch.set_float32_matmul_precision(before_2_9)


def cached_tables(function: F) -> F:
    """Cache the tensors that a function of sizes, dtype and device makes; for good, because CUDA
    graphs read their memory.

    All callers use the same tensors, so these are independent of the first caller: of its default
    device and dtype, and of its `torch.inference_mode()`, whose tensors cannot be used in training.
    Tensors without values, such as those of `torch.export`, are not kept.
    """

    @cache
    def kept(*args: Any) -> Any:
        with torch.device("cpu"), torch.inference_mode(False), Float32ByDefault():
            made = function(*args)
            if type(torch.empty(0)) is not Tensor:
                raise _NotKeptError(made)  # which `cache` does not keep
            return made

    @wraps(function)
    def make(*args: Any) -> Any:
        try:
            return kept(*args)
        except _NotKeptError as error:
            return error.tables

    own: Any = make
    own.cache_clear = kept.cache_clear
    return own


class _NotKeptError(Exception):
    """Carries tables that were made in a mode of torch whose tensors have no values."""

    def __init__(self, tables: Any) -> None:
        super().__init__()
        self.tables = tables


def apply_gates(x: Tensor, gates: Sequence[Tensor], axes: Sequence[tuple[int, ...]]) -> Tensor:
    """x with each matrix applied in turn to its axes of x, of which the last runs fastest; shape of
    x.
    """
    for gate, at in zip(gates, axes, strict=True):
        last = tuple(range(-len(at), 0))
        y = x.movedim(at, last)
        multiplied = y.flatten(-len(at)) @ gate.mT
        x = multiplied.unflatten(-1, y.shape[-len(at) :]).movedim(last, at)
    return x


def refuse_second_derivative() -> None:
    """Raise in the `backward` of a function that is differentiable once, under create_graph.

    torch's `once_differentiable` raises too late: `torch.autograd.grad` can give a part of a second
    derivative before.
    """
    if torch.is_grad_enabled():
        raise TrainingError(
            "this gradient cannot be differentiated again; differentiate without create_graph=True"
        )


def refuse_transforms() -> None:
    """Raise TrainingError inside torch.func's transforms, in which nothing here is evaluated."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise TrainingError(
            "a circuit or a generator cannot be evaluated inside torch.func.grad, vmap or another"
            " transform; use backward() or torch.autograd.grad, with torch.func.functional_call for"
            " other parameters"
        )


def check_tensor(
    tensor: Tensor, shape: tuple[int, ...], what: str, *, batched: bool = True
) -> None:
    """Raise unless the angles of `what` are finite floats of `shape`, or of (M, *shape) if
    `batched`.

    They are not read on an accelerator, where this waits for all queued work; a NaN still reaches
    the loss. Raises ConfigError, also for a type other than float32 and float64, and TrainingError
    inside torch.func's transforms.
    """
    refuse_transforms()
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"angles must be float32 or float64, got {tensor.dtype}; cast with .float()"
        )
    if tensor.shape != shape and not (batched and tensor.ndim and tensor.shape[1:] == shape):
        also = f" or (M, {', '.join(map(str, shape))})" if batched else ""
        raise ConfigError(f"{what} needs angles of shape {shape}{also}, got {tuple(tensor.shape)}")
    # one cheap pass; if only the sum overflows, all entries are finite
    is_suspect = tensor.device.type == "cpu" and not isfinite(tensor.detach().sum().item())
    if is_suspect and not torch.isfinite(tensor).all():
        raise ConfigError(
            f"the angles of {what} contain NaN or Inf; use a checkpoint from before the run"
            " diverged"
        )
