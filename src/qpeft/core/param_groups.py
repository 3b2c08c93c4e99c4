"""Explicit optimiser groups, for those who want more control than one learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from qpeft.core.holder import GeneratorHolder
from qpeft.errors import ConfigError
from qpeft.methods.qaa.model import QAALayer
from qpeft.methods.sora.model import sora_tuner

# the part of a generator, or of QAA's branch, that holds a parameter -> the parameter's group
_GROUP_OF = {
    **{"feature": "angles", "banks": "angles", "lam": "lambda", "gains": "gains", "mlp": "mlp"},
    **{"features": "angles", "V": "V", "c": "offset"},
}
_DECAYED = ("mlp", "V", "other")


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimiser that hold every trainable tensor exactly once.

    "angles": the numbers of circuits, or what stands in their place, with Adam's eps 1e-12; "lambda" and "gains":
    Quantum-PEFT's singular values and norm gains; "mlp": QPA's mapping MLP; "V" and "offset": QAA's V and c; "gates":
    SoRA's, a group for each adapter; "other": whatever else trains, for example `modules_to_save`, or a generator of
    yours. `weight_decay` applies to "mlp", "V" and "other" alone: 0 is no special angle, gates may not decay, and decay
    of the others is for you to set. The methods' different rates are folded into the parametrisation already, so all
    groups take the same `lr`, but for gates with a `gate_lr_mult`.

    Raises:
        ConfigError: the model has no trainable parameter.
    """
    found: dict[str, list[nn.Parameter]] = {name: [] for name in (*dict.fromkeys(_GROUP_OF.values()), "other")}
    group_of = {id(parameter): _GROUP_OF.get(name.split(".")[1]) for name, parameter in _own_parameters(model)}
    gates = _gate_groups(model, lr)
    gated = {id(gate) for group in gates for gate in group["params"]}
    for parameter in model.parameters():  # each once, those that modules share as well
        if parameter.requires_grad and id(parameter) not in gated:
            found[group_of.get(id(parameter)) or "other"].append(parameter)
    if not gates and not any(found.values()):
        raise ConfigError("the model has no trainable parameter; load it with is_trainable=True or attach an adapter")
    groups = [
        {
            "name": name,
            "params": parameters,
            "lr": lr,
            "weight_decay": weight_decay if name in _DECAYED else 0.0,
            **({"eps": 1e-12} if name == "angles" else {}),
        }
        for name, parameters in found.items()
        if parameters
    ]
    return groups + gates


def _gate_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """SoRA's trained gates, by adapter."""
    if (tuner := sora_tuner(model)) is None:
        return []
    configs: Any = tuner.peft_config
    found: dict[str, list[nn.Parameter]] = {}
    for _, adapter_name, gate in tuner.gates():
        if gate.requires_grad:
            found.setdefault(adapter_name, []).append(gate)
    return [
        {"name": "gates", "params": gates, "lr": lr * configs[name].gate_lr_mult, "weight_decay": 0.0}
        for name, gates in found.items()
    ]


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by names such as `default.banks.w768r8.numbers.tau`."""
    for module in model.modules():
        if isinstance(module, (GeneratorHolder, QAALayer)):
            parts = module.generators if isinstance(module, GeneratorHolder) else module.qaa_branch
            yield from parts.named_parameters()
