"""The lowest exact rank of a LoRA: what an export contains.

    dW = s sum_k B[:, k] A[k, :]    K = {k: A[k, :] != 0 and B[:, k] != 0}
    A' = A[K]    B' = B[:, K]    s = alpha' / r' = alpha / r, r' = |K|

A rank without an effect is 0 to the last bit: a quantized or untrained lambda, a closed gate of
SoRA. The ranks that are left are those of the update, apart from special values of the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from peft import LoraConfig
from peft.utils import PeftType
from peft.utils.other import get_pattern_key
from torch import Tensor

_SIDES = ("A.weight", "B.weight")
_WITH_OTHER_EFFECTS = ("lora_bias", "target_parameters", "use_qalora")


class Ranks(NamedTuple):
    """The tensors of a LoRA, and the rank of each module if one has lost ranks."""

    tensors: list[Tensor]
    by_module: dict[str, int] | None


def without_zero_ranks(labels: Sequence[str], tensors: list[Tensor], config: Any) -> Ranks:
    """The LoRA without ranks that have no effect, and without modules that have none left.

    `tensors` have these labels of slots, and `config` is the stock config, which this describes the
    ranks in. All are left if the adapter is no plain LoRA of linear layers, or has no effect at all.
    """
    unchanged = Ranks(tensors, None)
    if not _is_plain(config):
        return unchanged
    masks: dict[str, Tensor] = {}  # (r,) of each module: the ranks with an effect
    for label, tensor in zip(labels, tensors, strict=True):
        module, _, side = label.rpartition(".lora_")
        if side not in _SIDES or tensor.ndim != 2:
            return unchanged
        has_effect = (tensor != 0).any(1 if side == "A.weight" else 0)
        masks[module] = has_effect & masks[module] if module in masks else has_effect
    ranks = {module: int(mask.sum()) for module, mask in masks.items()}
    left = {module: rank for module, rank in ranks.items() if rank}
    if not left or all(mask.all() for mask in masks.values()):
        return unchanged
    alphas = {}
    for module, rank in left.items():
        key = get_pattern_key(config.alpha_pattern, module)
        alpha = config.alpha_pattern.get(key, config.lora_alpha)
        share = rank / len(masks[module])
        alphas[module] = alpha * (share**0.5 if config.use_rslora else share)
    largest = max(left, key=left.__getitem__)
    config.r = left[largest]
    config.lora_alpha = alphas[largest]
    config.rank_pattern = _patterns(left)
    config.alpha_pattern = _patterns(alphas)
    config.target_modules = set(left)
    config.exclude_modules = None
    kept = []
    for label, tensor in zip(labels, tensors, strict=True):
        module, _, side = label.rpartition(".lora_")
        mask = masks[module]
        kept.append(tensor[mask] if side == "A.weight" else tensor[:, mask])
    return Ranks(kept, ranks)


def _is_plain(config: Any) -> bool:
    """Whether the two matrices are all that the adapter does: no DoRA, biases, experts."""
    if config.peft_type != PeftType.LORA:
        return False
    variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    return not any(getattr(config, name, None) for name in (*variants, *_WITH_OTHER_EFFECTS))


def _patterns(values: dict[str, Any]) -> dict[str, Any]:
    """Patterns of the whole names of these modules."""
    return {f"^{re.escape(name)}": value for name, value in values.items()}
