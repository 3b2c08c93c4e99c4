"""Measurements of what an adapter changes in a model: in each adapted module, in each block, in the hidden states.

Adapted and base module read the same x, the input that the module has in the base. Blocks are whole layers; both models
read the base's hidden states. Methods that adapt no module (prefix, prompt) can therefore be compared by their blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.compare.measurements.activations import Batch, find_blocks, find_changed, record, under_base_names
from qpeft.compare.measurements.ranks import linear_cka
from qpeft.compare.measurements.update import LOCAL, NO_UPDATE, SPREAD, WEIGHT, Map, measure_module, spread
from qpeft.errors import DataError

N_TOKENS = 2048
NO_MODULE = "no module is adapted; this is a measurement of modules"
NOT_FINITE = "the adapted model's hidden states are not finite"

Values = dict[str, Any]


def measure_capacity(adapted: nn.Module, base: nn.Module, batches: Iterable[Batch], n_tokens: int = N_TOKENS) -> Values:
    """Measure `adapted` against `base`, another copy of its base model, on up to `n_tokens` real tokens of the batches.

    Returns

    - means over the adapted modules of the values of `update.measure_module`. Without an adapted module (`measured_at`
      is "blocks" then, otherwise "modules") those of `update.spread` are the means over blocks, the others None;
    - means over the blocks of the values of `update.spread`, with the prefix `block_`, comparable between all methods.
      The linear map is one of the same token;
    - `cka`, the mean over layers of the linear CKA between both models' hidden states, and `cka_last`;
    - `modules` and `blocks`: lists of the values of each, with `name` and `layer`;
    - `n_tokens`, `n_modules`, and `null_reasons` for values that are None.

    Raises:
        DataError: fewer than 4 tokens.
        UnsupportedTypeError: a model that is not one stack of blocks.
    """
    blocks, changed = find_blocks(base), find_changed(base, adapted)
    device = next(base.parameters()).device
    batches = _first_tokens(({name: part.to(device) for name, part in batch.items()} for batch in batches), n_tokens)
    inputs, outputs = record(base, blocks | {name: module for name, (module, _) in changed.items()}, batches)
    pick = _picker(batches, outputs[next(iter(blocks))], n_tokens)
    others = {name: under_base_names(adapted)[name] for name in blocks}
    _, own = record(adapted, others, batches)
    if not all(pick(own[name]).isfinite().all() for name in blocks):
        return _summarise([], [], len(changed), len(pick(own[next(iter(blocks))])), NOT_FINITE)
    _, fed = record(adapted, others, batches, feed={name: inputs[name] for name in blocks})
    module_rows, block_rows = [], []
    for layer, block in enumerate(blocks):
        x, y = pick(inputs[block]), pick(outputs[block])
        values = spread(x, pick(fed[block]).double() - y.double(), y)
        block_rows.append({"name": block, "layer": layer, **values, "cka": linear_cka(y, pick(own[block]))})
        for name, (module, other) in changed.items():
            if f"{name}.".startswith(f"{block}."):
                with torch.no_grad():
                    values = measure_module(_as_map(module), _as_map(other), pick(inputs[name]))
                module_rows.append({"name": name, "layer": layer, **values})
    return _summarise(module_rows, block_rows, len(module_rows), len(pick(inputs[next(iter(blocks))])))


def _as_map(module: nn.Module) -> Map:
    """The module as a function of rows (n, d), read as one text of n tokens."""

    def apply(x: Tensor) -> Tensor:
        output = module(x[None])
        return (output[0] if isinstance(output, tuple) else output)[0]

    return apply


def _summarise(
    modules: list[Values], blocks: list[Values], n_modules: int, n_tokens: int, reason: str | None = None
) -> Values:
    """Means over modules and blocks; `reason`: why there are no values."""
    means: Values = {
        **{name: _mean(modules or blocks, name) for name in (*SPREAD, *LOCAL, *WEIGHT)},
        **{f"block_{name}": _mean(blocks, name) for name in SPREAD},
        "cka": _mean(blocks, "cka"),
        "cka_last": blocks[-1]["cka"] if blocks else None,
    }
    reasons = {name: reason or _reason(modules, name) for name, value in means.items() if value is None}
    for row in modules:
        del row["null_reasons"]
    counts = {"measured_at": "modules" if n_modules else "blocks", "n_tokens": n_tokens, "n_modules": n_modules}
    return {**counts, **means, "modules": modules, "blocks": blocks, "null_reasons": reasons}


def _reason(modules: list[Values], name: str) -> str:
    if name.startswith("block_"):
        return NO_UPDATE
    if name.startswith("cka"):
        return "the hidden states are equal for all tokens"
    return "; ".join(sorted({row["null_reasons"][name] for row in modules})) or NO_MODULE


def _mean(rows: Sequence[Values], name: str) -> float | None:
    """The mean over the rows that have the value."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _first_tokens(batches: Iterable[Batch], n_tokens: int) -> list[Batch]:
    """Batches with at least `n_tokens` real tokens together; all batches of images."""
    taken: list[Batch] = []
    n = 0
    for batch in batches:
        taken.append(batch)
        if "attention_mask" in batch:
            n += int(batch["attention_mask"].sum())
        elif "input_ids" in batch:
            n += batch["input_ids"].numel()
        if n >= n_tokens:
            break
    return taken


def _picker(batches: list[Batch], shaped: list[Tensor], n_tokens: int) -> Callable[[list[Tensor]], Tensor]:
    """A function from tensors (B, T, d), one per batch, to the rows (n, d) of real tokens, without virtual tokens."""
    masks = [
        batch["attention_mask"].bool() if "attention_mask" in batch else like.new_ones(like.shape[:2], dtype=torch.bool)
        for batch, like in zip(batches, shaped, strict=True)
    ]
    if sum(int(mask.sum()) for mask in masks) < 4:
        raise DataError("capacity needs at least 4 tokens; give more batches")

    def pick(parts: list[Tensor]) -> Tensor:
        rows = [part[:, -mask.shape[1] :][mask] for part, mask in zip(parts, masks, strict=True)]
        return torch.cat(rows)[:n_tokens]

    return pick
