"""Refuse a checkpoint's tensors that do not make this adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.errors import CheckpointError


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless `found` has the names, shapes and fingerprint of `expected`, and is finite."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"the checkpoint does not hold this adapter: missing {missing or 'nothing'}, "
            f"unknown {surplus or 'nothing'}; it is damaged or was written with other settings"
        )
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise CheckpointError(
                f"the checkpoint's {name} has shape {list(found[name].shape)}, expected {list(value.shape)}; "
                "it was written with other settings or for another model"
            )
        if found[name].is_floating_point() != value.is_floating_point():
            raise CheckpointError(f"the checkpoint's {name} has type {found[name].dtype}, expected {value.dtype}")
        if name.endswith("fingerprint") and not torch.equal(found[name].cpu(), value.cpu()):
            raise CheckpointError(
                "the checkpoint was trained from another start or with other settings (seed, scales, activation, ...); "
                "build the adapter with the settings in its adapter_config.json, or load it with qpeft.load"
            )
    if broken := _first_nonfinite(found):
        raise CheckpointError(f"the checkpoint's {broken} contains NaN or Inf; use an earlier checkpoint")


def _first_nonfinite(found: dict[str, Tensor]) -> str | None:
    floats = [tensor.flatten() for tensor in found.values() if tensor.is_floating_point()]
    # all at once: for a small adapter a look at each tensor takes longer than to read its file
    if not floats or torch.isfinite(torch.cat(floats).sum()):
        return None
    return next((name for name, tensor in found.items() if not torch.isfinite(tensor).all()), None)


def check_adapter(tuner: Any, model: Any, adapter_name: str, found: dict[str, Tensor]) -> None:
    """The same for all that a file holds; PEFT itself leaves at its start what the file lacks, and says nothing.

    Args:
        tuner: The tuner's class.
        model: The PeftModel that the tensors go into.
        adapter_name: Which of its adapters.
        found: Tensors by their name in the model.
    """
    present = model.state_dict()
    others = [name for name in model.peft_config if name != adapter_name]
    config = model.peft_config[adapter_name]
    expected = tuner._get_adapter_state_dict(model, config, adapter_name, present, others)
    check_tensors({k: v for k, v in found.items() if k in expected or k not in present}, expected)
