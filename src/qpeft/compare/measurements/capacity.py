"""What an adapter can do to a model, as figures: of each module that it changes, of each block, of the whole.

Modules: what the adapter replaced or changed within the blocks; base and adapted module read the same x, the input that
the module has in the base. Blocks: the whole layers, each read by both models from the base's own hidden states; so
measured, methods that adapt no module (prefix, prompt) stand beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.compare.measurements.activations import (
    Batch,
    Trace,
    find_blocks,
    find_changed,
    record,
    under_base_names,
)
from qpeft.compare.measurements.ranks import linear_cka
from qpeft.compare.measurements.update import LOCAL, NO_UPDATE, SPREAD, WEIGHT, module_figures, spread
from qpeft.errors import DataError

N_TOKENS = 2048
NO_MODULE = "no module is adapted; these are figures of a module"
NOT_FINITE = "the adapted model's hidden states are not finite"

Figures = dict[str, Any]


def measure_capacity(
    adapted: nn.Module, base: nn.Module, batches: Iterable[Batch], n_tokens: int = N_TOKENS
) -> Figures:
    """Figures of `adapted` against `base`, another copy of the model that it was made from; neither changes.

    Real tokens of the batches are read, up to `n_tokens`. Returns

    - means over the adapted modules of `update.module_figures`: `effective_rank`, `mean_share`, `linear_share`,
      `update_ratio`, `jacobian_rank`, `change_at_2x`, `change_at_minus_x`, `weight_effective_rank`,
      `weight_numerical_rank`, `weight_stable_rank`, `weight_norm_ratio`. Without an adapted module (`measured_at` is
      "blocks" then, otherwise "modules") the first four are those of the blocks, the others None;
    - means over the blocks: `block_effective_rank`, `block_mean_share`, `block_linear_share`, `block_update_ratio`;
      comparable between all methods. The linear map is one of the same token;
    - `cka`, the mean over layers of the linear CKA between both models' hidden states, and `cka_last`;
    - `modules` and `blocks`: lists of all figures one by one, with `name` and `layer`;
    - `n_tokens`, `n_modules`, and `null_reasons` for what is None.

    Raises:
        DataError: fewer than 4 tokens.
        UnsupportedTypeError: a model that is not one stack of blocks.
    """
    blocks, changed = find_blocks(base), find_changed(base, adapted)
    batches = _enough(_on_device_of(base, batches), n_tokens)
    watched = blocks | {name: module for name, (module, _) in changed.items()}
    inputs, outputs = record(base, watched, batches)
    pick = _picker(batches, outputs[next(iter(blocks))], n_tokens)
    others = {name: under_base_names(adapted)[name] for name in blocks}
    _, own = record(adapted, others, batches)
    if not all(pick(own[name]).isfinite().all() for name in blocks):
        return _nothing(NOT_FINITE, len(pick(own[next(iter(blocks))])), len(changed))
    _, fed = record(adapted, others, batches, feed={name: inputs[name] for name in blocks})
    block_rows = [_block_row(name, i, pick, inputs, outputs, own, fed) for i, name in enumerate(blocks)]
    module_rows = [
        {"name": name, "layer": _layer(name, list(blocks)), **_module(*pair, pick(inputs[name]))}
        for name, pair in changed.items()
    ]
    return _summed(module_rows, block_rows, len(pick(inputs[next(iter(blocks))])))


def _module(module: nn.Module, other: nn.Module, x: Tensor) -> Figures:
    with torch.no_grad():
        return module_figures(partial(_apply, module), partial(_apply, other), x)


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    """A module's answer to rows (n, d), as one text of n tokens."""
    output = module(x[None])
    return (output[0] if isinstance(output, tuple) else output)[0]


def _block_row(
    name: str, layer: int, pick: Callable[[list[Tensor]], Tensor], inputs: Trace, outputs: Trace, own: Trace, fed: Trace
) -> Figures:
    x, y = pick(inputs[name]), pick(outputs[name])
    figures = spread(x, pick(fed[name]).double() - y.double(), y)
    return {"name": name, "layer": layer, **figures, "cka": linear_cka(y, pick(own[name]))}


def _summed(modules: list[Figures], blocks: list[Figures], n_tokens: int) -> Figures:
    rows = modules or blocks
    figures: Figures = {
        "measured_at": "modules" if modules else "blocks",
        "n_tokens": n_tokens,
        "n_modules": len(modules),
        **{name: _mean(rows, name) for name in (*SPREAD, *LOCAL, *WEIGHT)},
        **{f"block_{name}": _mean(blocks, name) for name in SPREAD},
        "cka": _mean(blocks, "cka"),
        "cka_last": blocks[-1]["cka"],
    }
    reasons = {name: _reason(modules, name) for name, value in figures.items() if value is None}
    for row in modules:
        del row["null_reasons"]
    return {**figures, "modules": modules, "blocks": blocks, "null_reasons": reasons}


def _reason(modules: list[Figures], name: str) -> str:
    if name.startswith("block_"):
        return NO_UPDATE
    if name.startswith("cka"):
        return "the hidden states are the same for all tokens"
    found = {row["null_reasons"][name] for row in modules}
    return "; ".join(sorted(found)) if found else NO_MODULE


def _nothing(reason: str, n_tokens: int, n_modules: int) -> Figures:
    names = (*SPREAD, *LOCAL, *WEIGHT, *(f"block_{name}" for name in SPREAD), "cka", "cka_last")
    figures = {"measured_at": "modules" if n_modules else "blocks", "n_tokens": n_tokens, "n_modules": n_modules}
    empty = {"modules": [], "blocks": [], "null_reasons": dict.fromkeys(names, reason)}
    return {**figures, **dict.fromkeys(names), **empty}


def _mean(rows: Sequence[Figures], name: str) -> float | None:
    """Over the rows that have the figure."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _layer(name: str, blocks: list[str]) -> int:
    return next(i for i, block in enumerate(blocks) if f"{name}.".startswith(f"{block}."))


def _on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterable[Batch]:
    device = next(model.parameters()).device
    return ({name: part.to(device) for name, part in batch.items()} for batch in batches)


def _enough(batches: Iterable[Batch], n_tokens: int) -> list[Batch]:
    """As many batches as hold `n_tokens` real tokens; all where that is not known, as of images."""
    taken: list[Batch] = []
    n = 0
    for batch in batches:
        taken.append(batch)
        n += int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch.get("input_ids", _NONE).numel()
        if n >= n_tokens:
            break
    return taken


_NONE = torch.empty(0)


def _picker(batches: list[Batch], shaped: list[Tensor], n_tokens: int) -> Callable[[list[Tensor]], Tensor]:
    """From tensors (B, T, d), a batch each, to the rows (n, d) of real tokens; virtual tokens in front are left out."""
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
