"""Explicit optimiser groups, for those who want more control than one learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from qpeft.adapters.generated import GeneratedMixin
from qpeft.errors import ConfigError


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimiser that hold every trainable tensor exactly once.

    "angles": circuit angles (or the free vector in their place), no weight decay, Adam eps 1e-12;
    "mlp": the mapping MLP; "other": whatever else trains, for example `modules_to_save`.
    `weight_decay` applies to "mlp" and "other". The different rates of the paper are folded into the
    parametrisation already, so all groups take the same `lr`.

    Raises:
        ConfigError: the model has no trainable parameter.
    """
    angles, mlp = [], []
    for module in model.modules():
        if isinstance(module, GeneratedMixin):
            for name, parameter in module.generators.named_parameters():
                if parameter.requires_grad:
                    (angles if ".feature." in name else mlp).append(parameter)
    known = {id(p) for p in (*angles, *mlp)}
    other = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"name": "angles", "params": angles, "lr": lr, "weight_decay": 0.0, "eps": 1e-12},
        {"name": "mlp", "params": mlp, "lr": lr, "weight_decay": weight_decay},
        {"name": "other", "params": other, "lr": lr, "weight_decay": weight_decay},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("the model has no trainable parameter; load it with is_trainable=True or attach an adapter")
    return groups
