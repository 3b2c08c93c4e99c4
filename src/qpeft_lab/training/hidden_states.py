"""Hidden states of a frozen base, computed once for all runs of a study.

Where only the output head is adapted, the layers below it give the same hidden states in every run
that sees the same tokens: those of the trials of learning rates, of a seed, and of the validation
and test data. They are most of the time of a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from qpeft.files import replace_file

_INPUTS = ("input_ids", "attention_mask")
_WITHOUT_EFFECT = ("use_cache", "return_dict", "num_items_in_batch")  # on the hidden states


def keep_hidden_states(model: PreTrainedModel, folder: Path) -> None:
    """Let the layers below the output head of `model` read their hidden states from `folder`, and
    write those that are missing.

    The base computes as before while something in it is adapted or trained, while it has dropout,
    and for inputs other than tokens. The folder belongs to one base, in one dtype.
    """
    body = model.base_model
    body.forward = partial(_forward, body, body.forward, folder)


def _forward(body: Any, compute: Callable[..., Any], folder: Path, **inputs: Any) -> Any:
    given = {name: value for name, value in inputs.items() if value is not None}
    if not given.keys() <= {*_INPUTS, *_WITHOUT_EFFECT} or not _is_fixed(body):
        return compute(**inputs)
    path = folder / f"{_hash_of([given.get(name) for name in _INPUTS])}.safetensors"
    try:
        hidden = load_file(path, device=str(body.device))["hidden"]  # (B, T, d)
    except (FileNotFoundError, SafetensorError):
        inputs["use_cache"] = False
        hidden = compute(**inputs)[0]
        with replace_file(path) as temporary:
            save_file({"hidden": hidden.contiguous()}, temporary)
    return BaseModelOutputWithPast(last_hidden_state=hidden)


def _is_fixed(body: nn.Module) -> bool:
    """Whether the hidden states depend on the tokens alone."""
    if any(isinstance(module, BaseTunerLayer) for module in body.modules()):
        return False
    if any(p.requires_grad for p in body.parameters()):
        return False
    options: dict[str, Any] = body.config.to_dict()  # type: ignore[union-attr, operator]
    has_dropout = any(value for name, value in options.items() if "drop" in name)
    return not (body.training and has_dropout)


def _hash_of(inputs: list[Tensor | None]) -> str:
    sha = hashlib.sha256()
    for tensor in inputs:
        if tensor is not None:
            sha.update(str(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
    return sha.hexdigest()
