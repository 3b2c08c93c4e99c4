"""Generators under FSDP2 (`fully_shard`): every process keeps all parameters, and their gradients are averaged.

A generator has few parameters, and every process needs all of them. Only the base model, and whatever else is trained,
is sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qpeft.errors import ConfigError

_DEEPSPEED_MARKS = ("ds_id", "_hp_mapping")  # attributes of parameters under ZeRO-3; under ZeRO-1 and 2


def keep_whole(generator: nn.Module) -> None:
    """Make `fully_shard` leave out the generator, as PyTorch's composable `replicate` does."""
    if not dist.is_available() or "_modules" not in vars(generator):  # which unpickling restores later
        return
    try:
        from torch.distributed._composable.contract import _get_registry, contract
    except ImportError:  # a torch without it: `refuse_sharded` names the argument of `fully_shard`
        return
    if replicate.__name__ not in (_get_registry(generator) or ()):
        contract()(replicate)(generator)


def replicate(module: nn.Module) -> nn.Module:
    """The function by whose name `fully_shard` recognizes the modules that it leaves out."""
    return module


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards the model or parts of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def n_processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def copy_from_first(generator: nn.Module, device: torch.device) -> None:
    """Move the generator to the device of the sharded model, with the values of the first process."""
    generator.to(device)
    for tensor in (*generator.parameters(), *generator.buffers()):
        dist.broadcast(tensor.data, src=0)


def average(gradients: Sequence[Any]) -> list[Any]:
    """The mean of all processes' gradients."""
    present = [gradient for gradient in gradients if gradient is not None]
    flat = torch.cat([gradient.flatten() for gradient in present])
    dist.all_reduce(flat)
    parts = iter((flat / n_processes()).split([gradient.numel() for gradient in present]))
    return [None if gradient is None else next(parts).view_as(gradient) for gradient in gradients]


def computing_device(model: nn.Module) -> torch.device:
    """Where a sharded model computes."""
    parameter: Any = next(model.parameters())
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.device_type == "cpu":
        return parameter.device
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def local(tensor: Any) -> Tensor:
    """The part of a sharded tensor that this process holds; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def refuse_sharded_adapter(model: nn.Module) -> None:
    """Raise ConfigError if FSDP2 shards trained parameters, which one process alone cannot save."""
    if any(p.requires_grad and hasattr(p, "to_local") for p in model.parameters()):
        raise ConfigError(
            "FSDP2 shards trained parameters of this adapter. Call state = get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict in every process, and "
            "model.save_pretrained(folder, state_dict=state) in the first one; load the folder with qpeft.load to "
            "export it"
        )


def sharded_by(module: nn.Module) -> str | None:
    """What shards the module's parameters: "FSDP" (1 or 2), "DeepSpeed ZeRO", or None."""
    if getattr(module, "_is_fsdp_managed_module", False):
        return "FSDP"
    parameter = next(module.parameters(), None)
    return "DeepSpeed ZeRO" if any(hasattr(parameter, mark) for mark in _DEEPSPEED_MARKS) else None


def refuse_sharded(module: nn.Module) -> None:
    """Raise ConfigError if FSDP or DeepSpeed ZeRO shards the parameters of a generator, or FSDP1 or ZeRO the model's.

    FSDP hides or replaces them between forward passes. ZeRO's optimizer updates copies without changing the version
    counter, so forward passes would use old values.
    """
    if found := sharded_by(module):
        raise ConfigError(
            f"{found} shards the generator of this adapter, which has few parameters and needs all of them in every "
            "process; use FSDP2, which shards the base model only: torch.distributed.fsdp.fully_shard(model), or "
            "fsdp_version=2 in accelerate. If fully_shard causes this error, give it ignored_params={*generator."
            "parameters()} for the generators of the adapter"
        )
