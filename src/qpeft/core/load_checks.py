"""What is checked of an adapter that PEFT has loaded: that it is complete, and that it acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from qpeft.core.holder import GeneratorHolder, holder_of
from qpeft.errors import CheckpointError


def check_whole(model: Any, folder: Path, name: str) -> None:
    """Raise CheckpointError if the file lacks a tensor, or has one too many: PEFT only warns, or says nothing."""
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).keys()
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        found = set(file.keys())
    # a generator's were compared when they were loaded, unpacked: a file without frames has their hash instead
    generated = {key for key in wanted | found if key.startswith(f"base_model.{GeneratorHolder.container}.")}
    missing = sorted(wanted - found - generated)
    surplus = sorted(found - wanted - generated - model.state_dict().keys())
    if missing or surplus:
        raise CheckpointError(
            f"{folder} does not hold this adapter: missing {missing[:3] or 'nothing'}, unknown "
            f"{surplus[:3] or 'nothing'}; {SAFETENSORS_WEIGHTS_NAME} or {CONFIG_NAME} is damaged, or for another base "
            "model"
        )


def check_acts(model: Any, folder: Path, name: str) -> None:
    """Raise CheckpointError if the adapter's parameters are not finite, or its config multiplies them by 0."""
    if broken := find_not_finite(model, name):
        raise CheckpointError(f"{folder} contains NaN or Inf, in {broken}; use an earlier checkpoint")
    for module_name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        factor = scaling.get(name, 1.0) if isinstance(scaling, dict) else 1.0
        if not torch.finfo(torch.float32).tiny <= abs(factor) < torch.finfo(torch.float32).max:
            raise CheckpointError(
                f"{folder / CONFIG_NAME} multiplies the adapter of {module_name} by {factor}; restore lora_alpha and "
                "what goes with it"
            )


def find_not_finite(model: Any, name: str) -> str | None:
    """A tensor with NaN or Inf among those that are saved and those that are generated; None if there is none."""
    holder = holder_of(model)
    if holder is not None and name in holder.generators:
        with holder.exact():  # as it is exported: no device is asked
            state = holder.stock_state(model, name)
    else:
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return next((key for key, value in state.items() if not value.is_meta and not torch.isfinite(value).all()), None)
