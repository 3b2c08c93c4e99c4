"""The OFT of stock PEFT that is equal to a rotation next to a linear map.

OFT rotates the inputs of a map, y = W (Q x), so a rotation in front of a map is an OFT of this map.

A rotation behind a v_proj, Q (W x), is equal to one in front of the o_proj if no block crosses the
border of a head. Attention computes weighted sums of the values of a head over the tokens, and a
rotation within a head commutes with such sums:

    x -> v_proj -> Q -> sums over tokens -> o_proj
    x -> v_proj -> sums over tokens -> Q -> o_proj

A key-value head serves several query heads, whose outputs lie next to each other in front of the
o_proj. So its blocks are repeated for each of them. With 2 key-value heads of two blocks each and 4
query heads, the blocks 0 1 | 2 3 become 0 1 | 0 1 | 2 3 | 2 3.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.core.linear_tuner import AdaptedMap
from qpeft.core.targets import sizes

# types of models with nothing but heads between v_proj and o_proj
_PLAIN_ATTENTION = ("gemma3_text", "llama", "mistral", "qwen3")


class EqualOFT(NamedTuple):
    """Where the equal OFT is, and which blocks it has."""

    name: str  # of the map whose inputs it rotates
    blocks: Tensor  # int64 (n,): for each of its blocks the number of the rotation's


class _Heads(NamedTuple):
    """The widths around an attention whose values are rotated; each should divide the next."""

    block: int
    head: int
    values: int  # of all key-value heads: the output of v_proj
    mixed: int  # of all query heads: the input of o_proj


def oft_problem(model: nn.Module, adapted: AdaptedMap) -> str:
    """Why no OFT is equal to a `Rotation` next to a map of `model`; empty if one is."""
    name, layer, rotation = adapted
    if not rotation.is_linear:
        return "OFT, its nearest in PEFT, rotates by a linear map"
    if isinstance(layer.get_base_layer(), Conv1D):
        return "OFT, its nearest in PEFT, does not adapt Conv1D"
    if rotation.side == "input":
        if layer.in_features % rotation.size:
            return (
                f"OFT, its equal, needs blocks that divide {layer.in_features}, the width of {name}"
            )
        return ""
    if not _is_in_front_of_o_proj(model, adapted):
        return (
            f"OFT, its equal in PEFT, rotates inputs, not the output of {name}; that of a v_proj"
            " without bias is the input of an o_proj that is not trained, in models of type"
            f" {', '.join(_PLAIN_ATTENTION)}"
        )
    heads = _heads(model, adapted)
    if any(wider % narrower for narrower, wider in pairwise(heads)):
        return f"OFT, its equal in PEFT, needs blocks that divide a head of {heads.head}"
    return ""


def equal_oft(model: nn.Module, adapted: AdaptedMap) -> EqualOFT:
    """The OFT that is equal to a `Rotation` without an `oft_problem`."""
    rotation = adapted.adapter
    blocks = torch.arange(len(rotation.angles.start))
    if rotation.side == "input":
        return EqualOFT(adapted.name, blocks)
    heads = _heads(model, adapted)
    by_head = blocks.view(heads.values // heads.head, -1)  # (key-value heads, blocks of one)
    repeated = by_head.repeat_interleave(heads.mixed // heads.values, 0)  # (query heads, blocks)
    return EqualOFT(f"{_parent(adapted.name)}.o_proj", repeated.flatten())


def behind_values(attention: Any, x: Tensor) -> Tensor:
    """o_proj of v_proj of `x` (tokens, width), each token attending to itself alone: (tokens,
    outputs).
    """
    values = attention.v_proj(x)  # (tokens, values)
    mixed, _ = sizes(attention.o_proj)
    by_head = values.unflatten(-1, (-1, attention.head_dim))  # (tokens, key-value heads, head)
    repeated = by_head.repeat_interleave(mixed // values.shape[-1], -2)  # (tokens, heads, head)
    return attention.o_proj(repeated.flatten(-2))


def _is_in_front_of_o_proj(model: nn.Module, adapted: AdaptedMap) -> bool:
    """Whether nothing but sums over tokens lies between the map and an o_proj that is not trained."""
    base: Any = adapted.layer.get_base_layer()
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    parent, _, last = adapted.name.rpartition(".")
    if model_type not in _PLAIN_ATTENTION or last != "v_proj" or base.bias is not None:
        return False
    attention: Any = model.get_submodule(parent)
    return not hasattr(attention.o_proj, "modules_to_save")


def _heads(model: nn.Module, adapted: AdaptedMap) -> _Heads:
    attention: Any = model.get_submodule(_parent(adapted.name))
    mixed, _ = sizes(attention.o_proj)
    return _Heads(adapted.adapter.size, attention.head_dim, adapted.layer.out_features, mixed)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
