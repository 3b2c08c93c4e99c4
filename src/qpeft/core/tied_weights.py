"""Weights that two modules share, usually the output head and the input embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qpeft.errors import ConfigError, TiedWeightError


def untie_lm_head(model: Any) -> Any:
    """Give the output head its own copy of the weight it shares with the input embedding, in place.

    Needed before merging an adapter of the head: merging would otherwise change the embedding as well. `model` is a
    transformers model or a PeftModel over one; it is returned. A head with its own weight is not changed.

    Raises:
        ConfigError: the model has no output head.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None:
        raise ConfigError(f"{type(base).__name__} has no output head to untie")
    layer = getattr(head, "base_layer", head)
    embedding = base.get_input_embeddings()
    if layer.weight is getattr(embedding, "base_layer", embedding).weight:
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=layer.weight.requires_grad)
        for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return model


def check_not_tied(model: nn.Module, target_names: list[str]) -> None:
    """Raise TiedWeightError if another module shares the weight of a target."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(_module_name(name))
    for names in owners.values():
        for target in target_names:
            others = [name for name in names if name != target]
            if target in names and others:
                raise TiedWeightError(
                    f"{target} shares its weight with {others[0]}, which merging would change as well; untie an output "
                    "head with qpeft.untie_lm_head(model)"
                )


def _module_name(parameter_name: str) -> str:
    return parameter_name.rpartition(".")[0].removesuffix(".base_layer")
