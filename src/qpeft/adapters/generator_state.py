"""Refuse a checkpoint's tensors that do not make this generator."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.errors import CheckpointError


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless `found` has the names, shapes and fingerprint of `expected`, and is finite."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"the checkpoint does not hold this generator: missing {missing or 'nothing'}, "
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
        if not torch.isfinite(found[name]).all():
            raise CheckpointError(f"the checkpoint's {name} contains NaN or Inf; use an earlier checkpoint")
