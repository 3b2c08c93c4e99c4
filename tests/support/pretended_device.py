"""A pretended accelerator without float64, such as MPS: its tensors are CPU tensors of a class of
their own.

Within `PretendedDevice()` they say that they are on `DEVICE`. What is computed from them is on it,
and so is what is made or moved there; `.cpu()` and `.to("cpu")` leave it. A float64 or complex128
tensor on it raises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cpu", 0)  # differs from torch.device("cpu")
REFUSED = (torch.float64, torch.complex128)
_MOVES = (Tensor.cpu, Tensor.to)


class OnDevice(Tensor):
    """A tensor on the pretended device."""


class PretendedDevice(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__ and isinstance(args[0], OnDevice):
            return DEVICE
        if func is Tensor.__deepcopy__ and isinstance(args[0], OnDevice):
            return _copied(*args)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        is_on = _is_on_device(func, args, kwargs)
        inputs = {id(x) for x in tree_leaves((args, kwargs))}

        def placed(x: Any) -> Any:
            if not isinstance(x, Tensor) or (id(x) in inputs and func not in _MOVES):
                return x  # of an operation in place, on the device of its tensor
            if is_on and x.dtype in REFUSED:
                name = getattr(func, "__name__", func)
                raise RuntimeError(f"{name} makes {x.dtype} on a device that has none")
            if is_on == isinstance(x, OnDevice):
                return x
            if id(x) in inputs:
                return x.as_subclass(OnDevice if is_on else Tensor)
            x.__class__ = OnDevice if is_on else Tensor
            return x

        return result if isinstance(result, torch.Size) else tree_map(placed, result)


def move(model: nn.Module) -> nn.Module:
    """All parameters and buffers onto the pretended device, as `model.to(device)`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = parameter.detach().as_subclass(OnDevice)
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.as_subclass(OnDevice)
    return model


def _is_on_device(func: Any, args: Any, kwargs: Any) -> bool:
    if func is Tensor.cpu:
        return False
    given = [*args, kwargs.get("device")] if func is Tensor.to else [kwargs.get("device")]
    for device in (x for x in given if isinstance(x, torch.device | str)):
        if torch.device(device) == DEVICE:
            return True
        if torch.device(device).type == "cpu":
            return False
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if func is Tensor.to and len(tensors) == 2:  # x.to(other)
        return isinstance(tensors[1], OnDevice)
    return any(isinstance(x, OnDevice) for x in tensors)


def _copied(x: Tensor, memo: dict[int, Any]) -> Tensor:
    copied = x.detach().clone().as_subclass(OnDevice).requires_grad_(x.requires_grad)
    memo[id(x)] = nn.Parameter(copied, x.requires_grad) if isinstance(x, nn.Parameter) else copied
    return memo[id(x)]
