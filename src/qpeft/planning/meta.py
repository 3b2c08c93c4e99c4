"""A base model without its weights: every tensor on the meta device."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from qpeft.errors import ConfigError


def on_meta(base: nn.Module | PretrainedConfig | str | Path) -> nn.Module:
    """The model of `base` on the meta device; a given model is left untouched.

    Raises:
        ConfigError: there is no model at `base`, or its config is of no causal language model.
    """
    if isinstance(base, nn.Module):
        return _meta_copy(base)
    if isinstance(base, (str, Path)):
        try:
            base = AutoConfig.from_pretrained(base)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no model at '{base}': give a hub id that can be reached, or a local folder with config.json "
                f"({str(error).splitlines()[0]})"
            ) from error
    if type(base) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{type(base).__name__} is no causal language model; give the model itself to plan for it")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base)


def _meta_copy(model: nn.Module) -> nn.Module:
    """The same modules with every tensor on the meta device; nothing is allocated, `model` is untouched."""
    shells = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, shells)
