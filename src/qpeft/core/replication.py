"""Generators under FSDP2 (`fully_shard`): every process keeps all parameters, and their gradients
are averaged.

A generator has few parameters, and every process needs all of them. Only the base model, and
whatever else is trained, is sharded.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qpeft.errors import ConfigError


def keep_whole(generator: nn.Module) -> None:
    """Make `fully_shard` leave out the generator, as PyTorch's composable `replicate` does."""
    # for a torch without it `refuse_sharded` names the argument of `fully_shard`
    with suppress(ImportError):
        from torch.distributed._composable.contract import _get_registry, contract

        if replicate.__name__ not in (_get_registry(generator) or ()):
            contract()(replicate)(generator)


def replicate(module: nn.Module) -> nn.Module:
    """The function by whose name `fully_shard` recognizes the modules that it leaves out."""
    return module


def n_processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards the model or parts of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


class Replicas:
    """The processes that train a sharded model together: those of its mesh, which need not be all."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        meshes = [group.mesh_info.mesh for group in _sharded_groups(model)]
        # experts may have a mesh of fewer; a model that is sharded without parameters has none
        self.mesh: Any = max(meshes, key=lambda mesh: mesh.size(), default=None)
        # a group of processes for each dimension of the mesh; None: all processes
        self.groups = [None] if self.mesh is None else self.mesh.get_all_groups()

    @torch.no_grad()
    def copy_from_first(self, generator: nn.Module) -> None:
        """Move the generator to where the model computes, with the values of the first process."""
        if self.mesh is not None:  # parameters may be stored elsewhere, if offloaded
            generator.to(self.mesh.device_type)
        for tensor in (*generator.parameters(), *generator.buffers()):
            for group in self.groups:
                first = 0 if group is None else dist.get_global_rank(group, 0)
                dist.broadcast(tensor.data, src=first, group=group)

    def average(self, gradient: Tensor) -> Tensor:
        """The mean of the processes' gradients, or their sum by the divisor that the model has from
        `set_gradient_divide_factor`.
        """
        total = gradient.clone(memory_format=torch.contiguous_format)
        for group in self.groups:
            dist.all_reduce(total, group=group)
        model = self._model()
        sharded = () if model is None else _sharded_groups(model)
        divisor = next((group.gradient_divide_factor for group in sharded), None)
        return total / (divisor or (n_processes() if self.mesh is None else self.mesh.size()))


def add_over_processes(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes that train `model`, if FSDP2 shards it."""
    groups = Replicas(model).groups if is_sharded(model) else []
    for tensor in tensors:
        for group in groups:
            dist.all_reduce(tensor, group=group)


@torch.no_grad()
def copy_buffers_in_ddp(module: nn.Module) -> bool:
    """Give every process the buffers of the first one, in a forward pass of DDP that does not do so
    itself (broadcast_buffers=False). Returns whether it is such a one.

    DDP gives all processes equal parameters when it wraps a model, and with this option nothing
    else.
    """
    ddp: Any = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if ddp is None or ddp.broadcast_buffers:
        return False
    first = dist.get_global_rank(ddp.process_group, 0)
    for buffer in module.buffers():
        dist.broadcast(buffer.data, src=first, group=ddp.process_group)
    return True


def _sharded_groups(model: nn.Module) -> Iterator[Any]:
    """FSDP2's groups of sharded parameters, of which PyTorch publishes neither mesh nor divisor."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            # torch before 2.13 has one or none
            groups = getattr(
                state, "_fsdp_param_groups", [getattr(state, "_fsdp_param_group", None)]
            )
            yield from (group for group in groups if group is not None)


def refuse_sharded_adapter(model: nn.Module) -> None:
    """Raise ConfigError if FSDP2 shards trained parameters, which one process alone cannot save."""
    if any(p.requires_grad and hasattr(p, "to_local") for p in model.parameters()):
        raise ConfigError(
            "FSDP2 shards trained parameters of this adapter. Call state ="
            " get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of"
            " torch.distributed.checkpoint.state_dict in every process, and"
            " model.save_pretrained(folder, state_dict=state) in the first one; load the folder"
            " with qpeft.load to export it"
        )


def refuse_sharded(module: nn.Module) -> None:
    """Raise ConfigError if FSDP or DeepSpeed ZeRO shards the parameters of a generator, or FSDP1 or
    ZeRO the model's.

    FSDP hides or replaces them between forward passes. ZeRO's optimizer updates copies without
    changing the version counter, so forward passes would use old values.
    """
    first = next(module.parameters(), None)
    # the marks of ZeRO-3, and of ZeRO-1 and 2
    is_zero = hasattr(first, "ds_id") or hasattr(first, "_hp_mapping")
    if is_zero or getattr(module, "_is_fsdp_managed_module", False):
        raise ConfigError(
            "FSDP or DeepSpeed ZeRO shards the generator of this adapter, which has few parameters"
            " and needs all of them in every process; use FSDP2, which shards the base model only:"
            " torch.distributed.fsdp.fully_shard(model), or fsdp_version=2 in accelerate. If"
            " fully_shard causes this error, give it ignored_params={*generator.parameters()} for"
            " the generators of the adapter"
        )
