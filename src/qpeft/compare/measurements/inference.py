"""How fast models write: tokens a second, side by side."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qpeft.training.metrics import evaluation_mode

_WARM_UP_TOKENS = 8


def tokens_per_second(
    models: Mapping[str, Any], ids: Tensor, new_tokens: int, batch_sizes: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """By batch size ("batch_1", ...) and name: tokens written a second, greedily, with a key-value cache.

    The prompts are the first rows of `ids` (at least the largest batch size, T). All models write `new_tokens` tokens,
    past an end of text too. They take turns, `rounds` times; the median of each counts.
    """
    found = {}
    for size in batch_sizes:
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            _seconds(model, ids[:size], min(_WARM_UP_TOKENS, new_tokens))
        for _ in range(rounds):
            for name, model in models.items():
                seconds[name].append(_seconds(model, ids[:size], new_tokens))
        found[f"batch_{size}"] = {name: size * new_tokens / median(times) for name, times in seconds.items()}
    return found


def has_room(model: Any, n_tokens: int) -> bool:
    """Whether the model's context holds so many tokens, beside an adapter's virtual ones."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    configs = getattr(model, "peft_config", {}).values()
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in configs), default=0)
    return context is None or n_tokens + virtual <= context


def write(model: Any, ids: Tensor, mask: Tensor, end: int | None = None, **length: int) -> Tensor:
    """The likeliest tokens (B, new) behind prompts (B, T), with a key-value cache; `length` as transformers names it.

    Without `end` a text ends where the model's own settings say.
    """
    stop = {} if end is None else {"eos_token_id": end}
    with evaluation_mode(model), warnings.catch_warnings():
        # PEFT's virtual tokens leave positions out that transformers makes by itself, and say so
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        written = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=end or 0, **stop, **length
        )
    return written[:, ids.shape[1] :]


def _seconds(model: Any, ids: Tensor, new_tokens: int) -> float:
    synchronise(ids.device)
    began = time.perf_counter()
    write(model, ids, torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    synchronise(ids.device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for what was queued on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
