"""Initial values of a LoRA from training data, by PEFT's own functions: LoRA-GA (arXiv 2407.05000) and EVA."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraGAConfig, initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga

from qpeft.core import checkpoint
from qpeft.core.targets import set_target_names
from qpeft.errors import ConfigError, setting

_Batches = Sequence[Mapping[str, Any]]


def gradients_for(config: Any) -> Callable[[Any, Any, _Batches], None] | None:
    """`attach_gradients`, if `config` needs the loss gradient before the adapter is added."""
    return attach_gradients if config.init_lora_weights == "lora_ga" else None


def attach_gradients(base: Any, config: Any, batches: _Batches) -> None:
    """Give the base's target modules the gradients that PEFT's LoRA-GA decomposes.

    Raises ConfigError for DoRA, whose magnitudes the saved adapter could not restore.
    """
    if config.use_dora:
        raise ConfigError(
            f"{setting('init_lora_weights')}='lora_ga' changes the base weights, to which DoRA's magnitudes refer; "
            "use it without use_dora"
        )
    config.lora_ga_config = config.lora_ga_config or LoraGAConfig()
    base.to("cuda" if torch.cuda.is_available() else "cpu")
    targets = config
    if str(config.target_modules).lower() == "all-linear":  # which PEFT expands only when it adds the adapter
        targets = copy.copy(config)
        set_target_names(base, targets, lambda _: "all-linear", lambda model: model.named_modules())
    with warnings.catch_warnings():
        # from the hooks by which PEFT counts; the gradients of the weights are not affected
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(base, targets, lambda: _backward(base, batches))


def data_start_for(config: Any) -> Callable[[Any, _Batches], None] | None:
    """What sets or keeps the initial values that `config` takes from the data; None for other initializations."""
    return {"lora_ga": keep_initial, "eva": initialize_by_activations}.get(config.init_lora_weights)


def keep_initial(model: Any, _: _Batches) -> None:
    """Keep the initial adapter, with which `qpeft.save` makes the adapter independent of the changed base weights."""
    folder = tempfile.mkdtemp(prefix="qpeft-initial-")
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    checkpoint.keep_initial(model, str(Path(folder) / "initial"))


def initialize_by_activations(model: Any, batches: _Batches) -> None:
    """PEFT's EVA: lora_A from the leading directions of each layer's input."""
    device = next(model.parameters()).device
    moved = [{name: part.to(device) for name, part in batch.items()} for batch in batches]
    initialize_lora_eva_weights(model, moved, show_progress_bar=False)


def _backward(base: Any, batches: _Batches) -> None:
    device = next(base.parameters()).device
    for batch in batches:
        base(**{name: part.to(device) for name, part in batch.items()}).loss.backward()
