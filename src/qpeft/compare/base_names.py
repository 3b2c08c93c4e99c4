"""Settings of a study that stand for modules of its base: "@norms", "@last-norm" and "@linear-and-head"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from qpeft.errors import ConfigError

NORMS, LAST_NORM, LINEAR = "@norms", "@last-norm", "@linear-and-head"


def fill_names(settings: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`settings` with names of modules of `model`. Raises ConfigError if it has none."""
    makers = {NORMS: _norms, LAST_NORM: _last_norm, LINEAR: _linear}
    return {
        name: makers[value](model) if isinstance(value, str) and value in makers else value
        for name, value in settings.items()
    }


def _norms(model: nn.Module) -> list[str]:
    """The last parts of the names of all normalization layers, as in `modules_to_save`."""
    return sorted({name.rpartition(".")[2] for name in _names(model)})


def _last_norm(model: nn.Module) -> list[str]:
    """The normalization after the last block: the last one that is neither in a block nor in the embeddings."""
    names = _names(model)
    outside = [name for name in names if not any(part.isdigit() or "embed" in part for part in name.split("."))]
    return [(outside or names)[-1]]


def _linear(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear maps: those of all-linear and the output head."""
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    if not names:
        raise ConfigError(f"{LINEAR} stands for linear maps, which {type(model).__name__} lacks")
    return sorted({name.rpartition(".")[2] for name in names})


def _names(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    if not found:
        raise ConfigError(f"{NORMS} and {LAST_NORM} stand for normalization layers, which {type(model).__name__} lacks")
    return found
