"""Settings of a study that stand for modules of its base: "@norms" and "@last-norm"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qpeft.errors import ConfigError

NORMS, LAST_NORM = "@norms", "@last-norm"


def fill_names(settings: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`settings` with names of modules of `model`. Raises ConfigError if it has no normalization layer."""
    makers = {NORMS: _norms, LAST_NORM: _last_norm}
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


def _names(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    if not found:
        raise ConfigError(f"{NORMS} and {LAST_NORM} stand for normalization layers, which {type(model).__name__} lacks")
    return found
