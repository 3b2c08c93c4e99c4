"""Training that shards a generator's few parameters is refused: each process needs all of them."""

from __future__ import annotations

from torch import nn

from qpeft.errors import ConfigError

# what DeepSpeed leaves on parameters: ZeRO-3 the first, ZeRO-1 and 2 the second
_DEEPSPEED_MARKS = ("ds_id", "_hp_mapping")


def sharded_by(module: nn.Module) -> str | None:
    """What has taken over the module's parameters: "FSDP" (1 or 2), "DeepSpeed ZeRO", or nothing."""
    if getattr(module, "_is_fsdp_managed_module", False):
        return "FSDP"
    parameter = next(module.parameters(), None)
    return "DeepSpeed ZeRO" if any(hasattr(parameter, mark) for mark in _DEEPSPEED_MARKS) else None


def refuse_sharded(generator: nn.Module) -> None:
    """Raise ConfigError if FSDP (1 or 2) or DeepSpeed ZeRO has taken over the generator's parameters.

    FSDP hides or replaces them between forward passes; ZeRO's optimiser updates copies that no version counter
    follows, so that forward passes would use old values.
    """
    if found := sharded_by(generator):
        raise ConfigError(
            f"{found} shards the generator of this adapter, which has few parameters and needs all of them in every "
            "process; train with plain DDP (torchrun or accelerate launch, without fsdp or deepspeed settings), and "
            "load a base model that is too large for one device in 8 or 4 bits"
        )
