"""Hidden states of a frozen base, computed once for all runs of a study.

Where only the upper layers or the output head are adapted, the layers below give the same hidden
states in every run that sees the same tokens: those of the trials of learning rates, of a seed, and
of the validation and test data. They are most of the time of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpeft.files import replace_file

_INPUTS = ("input_ids", "attention_mask")
_WITHOUT_EFFECT = ("use_cache", "return_dict", "num_items_in_batch")  # on the hidden states


def keep_hidden_states(model: PreTrainedModel, folder: Path) -> None:
    """Let the layers below the lowest one that is adapted or trained read their hidden states from
    `folder`, and write those that are missing.

    All layers compute as before while an embedding is adapted or trained, while the base has
    dropout, and for inputs other than tokens.
    """
    kept = _Kept(model.base_model, folder)
    kept.body.forward = partial(kept.compute, kept.body.forward)
    for index, layer in enumerate(kept.layers):
        layer.forward = partial(kept.compute_layer, index, layer.forward)


class _Kept:
    """The hidden states (B, T, d) of the batch that is computed."""

    def __init__(self, body: Any, folder: Path) -> None:
        self.body = body
        base = sha256(body.config.to_json_string().encode())
        for parameter in body.parameters():
            flat = parameter.detach().cpu().flatten()
            base.update(flat.view(torch.uint8).numpy())
        self.folder = folder / base.hexdigest()
        n_layers = body.config.num_hidden_layers
        lists = (part for part in body.modules() if isinstance(part, nn.ModuleList))
        of_all = (part for part in lists if len(part) == n_layers)
        self.layers = next(of_all, nn.ModuleList())
        self.n_fixed = 0  # layers whose output depends on the tokens alone
        self.path: Path | None = None  # of the output of the last of them
        self.hidden: Tensor | None = None

    def compute(self, compute: Callable[..., Any], *values: Any, **inputs: Any) -> Any:
        inputs.update(zip(signature(compute).parameters, values, strict=False))  # as GPT-2's head
        given = {name: value for name, value in inputs.items() if value is not None}
        self.path = self.hidden = None
        self.n_fixed = self._count_fixed()
        if self.n_fixed and given.keys() <= {*_INPUTS, *_WITHOUT_EFFECT}:
            inputs["use_cache"] = False
            batch = save({name: given[name].contiguous() for name in _INPUTS if name in given})
            name = f"{sha256(batch).hexdigest()}-{self.n_fixed}.safetensors"
            self.path = self.folder / name
            with suppress(FileNotFoundError, SafetensorError):
                self.hidden = load_file(self.path, device=str(self.body.device))["hidden"]
        return compute(**inputs)

    def compute_layer(
        self, index: int, compute: Callable[..., Any], *inputs: Any, **options: Any
    ) -> Any:
        if self.path is None or index >= self.n_fixed:
            return compute(*inputs, **options)
        if self.hidden is not None:
            return self.hidden
        hidden = compute(*inputs, **options)
        if index == self.n_fixed - 1:
            with replace_file(self.path) as temporary:
                save_file({"hidden": hidden.contiguous()}, temporary)
        return hidden

    def _count_fixed(self) -> int:
        """How many layers, from the lowest, have outputs that depend on the tokens alone."""
        options: dict[str, Any] = self.body.config.to_dict()
        has_dropout = any(value for name, value in options.items() if "drop" in name)
        others = (part for part in self.body.children() if part is not self.layers)
        if (self.body.training and has_dropout) or not all(map(_is_frozen, others)):
            return 0
        return len(list(takewhile(_is_frozen, self.layers)))


def _is_frozen(part: nn.Module) -> bool:
    return not any(
        isinstance(module, BaseTunerLayer)
        or any(p.requires_grad for p in module.parameters(recurse=False))
        for module in part.modules()
    )
