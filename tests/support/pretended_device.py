"""A pretended accelerator without float64, such as MPS. Its tensors are CPU tensors whose storage has
a tag.

Within `pretended_device()` they say that they are on `DEVICE`. What is computed from them is on it,
in forward and in backward passes, and so is what is made or moved there; `.cpu()` and `.to("cpu")`
leave it. An operation that makes a float64 or complex128 tensor on it raises.

Two modes are needed. A dispatch mode sees every operation, those of backward passes and of custom
autograd functions too, and passes the tag on by storage, so that views and saved tensors have it. It
sees no move, because both devices are the CPU: a function mode sees `x.device`, `.cpu()` and `.to()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)  # differs from torch.device("cpu")
REFUSED = (torch.float64, torch.complex128)


@contextmanager
def pretended_device() -> Iterator[None]:
    """Within it, tensors can be on `DEVICE`."""
    functions = _Functions()
    run_backward = torch.autograd._engine_run_backward

    def with_functions(*args: Any, **kwargs: Any) -> Any:
        # while it handles Tensor.backward, a function mode is off
        with functions:
            return run_backward(*args, **kwargs)

    engine = patch.object(torch.autograd, "_engine_run_backward", with_functions)
    with engine, _Operations(), functions:
        yield


def is_on_device(x: Tensor) -> bool:
    return getattr(x.untyped_storage(), "is_on_device", False)


def move(model: nn.Module) -> nn.Module:
    """All parameters and buffers onto the pretended device, as `model.to(device)`."""
    for tensor in (*model.parameters(), *model.buffers()):
        _tag(tensor)
    return model


class _Operations(TorchDispatchMode):
    """Passes the tag from the inputs of each operation to its results, and refuses their dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        device = kwargs.get("device")
        is_on = device == DEVICE if device is not None else any(map(is_on_device, inputs))
        if is_on:
            written = {x.untyped_storage()._cdata for x in inputs}  # where they are already
            _place(func, [x for x in _tensors(result) if x.untyped_storage()._cdata not in written])
        return result


class _Functions(TorchFunctionMode):
    """The device of a tensor, and moves between the devices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__ and is_on_device(args[0]):
            return DEVICE
        if func is Tensor.cpu:
            return _moved(args[0], False)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        result = func(*args, **kwargs)
        is_copy = func is Tensor.__deepcopy__ and is_on_device(args[0])
        if is_copy or kwargs.get("device") == DEVICE:
            _place(func, _tensors(result))
        return result


class _Move(torch.autograd.Function):
    """A copy on the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_device: bool) -> Tensor:
        ctx.to_device = to_device
        copied = x.clone()
        _tag(copied, to_device)
        return copied

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _moved(grad, not ctx.to_device), None


def _moved(x: Tensor, to_device: bool) -> Tensor:
    return x if is_on_device(x) == to_device else _Move.apply(x, to_device)


def _to(x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """`x.to(...)`. The dtype is changed on the CPU, which has every dtype, if one of both is it."""
    if args and isinstance(args[0], Tensor):
        to_device = is_on_device(args[0])
        dtype = args[0].dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        to_device = is_on_device(x) if device is None else device == DEVICE
    dtype = dtype or x.dtype
    if to_device:
        result = _moved(x.to(dtype), True)
        _place(Tensor.to, [result])
    else:
        result = _moved(x, False).to(dtype)
    return result.clone() if copy and result is x else result


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _place(func: Any, results: list[Tensor]) -> None:
    """Tag the results of a function. Raises RuntimeError for a dtype that the device has not."""
    for x in results:
        if x.dtype in REFUSED:
            name = getattr(func, "__name__", func)
            raise RuntimeError(f"{name} makes {x.dtype} on a device that has none")
        _tag(x)


def _tag(x: Tensor, is_on: bool = True) -> None:
    x.untyped_storage().is_on_device = is_on  # pyright: ignore[reportAttributeAccessIssue]
