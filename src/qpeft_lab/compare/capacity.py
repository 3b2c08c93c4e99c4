"""The representational capacity that training used: the ranks of the learned updates of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from qpeft_lab.compare.rows import Row
from qpeft_lab.diagnose.adapters import effective_rank

_LARGEST = 2048  # the smaller side of an update: the singular values of larger ones take minutes, except for factors

Update = Tensor | tuple[Tensor, Tensor]  # (rows, columns), or LoRA's factors B (rows, r) and A (r, columns)


@torch.no_grad()
def rank_fields(model: Any, make_untrained: Callable[[], Any]) -> Row:
    """Numerical and effective rank of the learned updates, means over the changed weights.

    There are no fields if the method adds nothing to weights. `model` has run since its parameters changed.
    `make_untrained`: makes the model before training, which is needed for one that is trained without an adapter.
    """
    updates = _of_adapter(model) if isinstance(model, PeftModel) else _of_weights(model, make_untrained())
    if not updates:
        return {}
    found = effective_rank(updates).values
    return {"rank_numerical": found["numerical_rank"], "rank_effective": found["entropy_rank"]}


def _of_adapter(model: PeftModel) -> dict[str, Update]:
    """By module; of DoRA without its magnitudes."""
    found: dict[str, Update] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        a, b = (getattr(layer, part, {}) for part in ("lora_A", "lora_B"))
        if (adapter := model.active_adapter) in b:
            found[name] = b[adapter].weight.flatten(1), a[adapter].weight.flatten(1)
        elif adapter not in a and (update := getattr(layer, "get_delta_weight", None)):
            _add(found, name, update(adapter))
    return found


def _of_weights(model: Any, untrained: Any) -> dict[str, Update]:
    found, before = {}, dict(untrained.named_parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dim() > 1:
            _add(found, name, weight - before[name].to(weight.device))
    return found


def _add(found: dict[str, Update], name: str, update: Tensor) -> None:
    if min((matrix := update.flatten(1)).shape) <= _LARGEST:
        found[name] = matrix
