"""Explicit optimizer groups, for more control than one learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from qpeft.core.generator import OTHER, FullPrecision, ParameterGroup
from qpeft.core.meta_model import check_model
from qpeft.errors import ConfigError


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimizer that contain every trainable tensor exactly once.

    "angles": the angles of circuits in radians, or their replacements, with Adam's eps 1e-12; "lambda":
    Quantum-PEFT's singular values; "map": QPA's map or network; "V" and "offset": QAA's V and c;
    "gates": SoRA's; "other": all other trainable tensors, for example `modules_to_save` or a
    registered generator's. `weight_decay` applies to "map", "V" and "other" only. The
    parametrization contains the factors between learning rates already, so all groups have the same
    `lr`.

    Raises:
        ConfigError: the model has no trainable parameter.
    """
    check_model(model)
    order: list[ParameterGroup] = []
    group_of: dict[int, ParameterGroup] = {}
    for module in model.modules():
        if isinstance(module, FullPrecision) and module.groups:
            order += module.groups.values()
            for name, parameter in module.named_parameters():
                group_of[id(parameter)] = module.groups.get(name.partition(".")[0], OTHER)
    members: dict[ParameterGroup, list[nn.Parameter]] = {group: [] for group in [*order, OTHER]}
    for parameter in model.parameters():  # each once, those that modules share as well
        if parameter.requires_grad:
            members[group_of.get(id(parameter), OTHER)].append(parameter)
    if not any(members.values()):
        raise ConfigError(
            "the model has no trainable parameter; load it with is_trainable=True or attach an"
            " adapter"
        )
    groups = []
    for group, parameters in members.items():
        if parameters:
            decay = weight_decay if group.decays else 0.0
            options = {"name": group.name, "params": parameters, "lr": lr, "weight_decay": decay}
            groups.append(options if group.eps is None else options | {"eps": group.eps})
    return groups
