"""The speed of training steps and of generation, and the FLOPs of a training step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import qpeft
from qpeft.core.adapter_form import form_of
from qpeft.training.generation import generate
from qpeft.training.settings import TrainSettings

_LEARNING_RATE = 1e-4  # not 0: a generator runs again only after its parameters changed
_PLANNED_STEPS = 100_000  # SoRA's threshold, which increases over these steps, stays near 0
_WARM_UP_TOKENS = 8

Batch = Mapping[str, Tensor]


class TrainingSteps:
    """Single training steps of a model with AdamW."""

    def __init__(self, model: Any, settings: TrainSettings):
        self.model = model.train()
        self._max_norm = settings.max_grad_norm
        groups = qpeft.param_groups(model, _LEARNING_RATE, settings.weight_decay)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        if (form := form_of(model)) is not None:
            form.on_optimizer(self._optimizer, _PLANNED_STEPS)

    def step(self, batch: Batch) -> float:
        """Milliseconds of forward, backward, clipping and AdamW."""
        began = now()
        self.backward(batch)
        if self._max_norm:
            clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        return 1000 * (now() - began)

    def backward(self, batch: Batch) -> None:
        """Compute the gradients of a batch."""
        self._optimizer.zero_grad()
        self.model(**batch).loss.backward()


def compare_steps(
    run: TrainingSteps, reference: TrainingSteps, batches: Sequence[Batch], warm_up: int, timed: int
) -> dict[str, Any]:
    """Milliseconds {median, p10, p90} of alternating steps of a model and the reference, and the ratio of medians.

    The reference takes every step twice. The ratio of the medians of the two is 1 without noise.
    """
    runs = (run, reference, reference)
    times = [[each.step(batch) for each in runs] for batch in islice(cycle(batches), warm_up + timed)]
    low, middle, high = np.percentile(times[warm_up:], (10, 50, 90), axis=0)  # (3,) each
    step, other, twin = ({"median": middle[i].item(), "p10": low[i].item(), "p90": high[i].item()} for i in range(3))
    return {
        "step_ms": step,
        "reference_step_ms": other,
        "step_ratio": step["median"] / other["median"],
        "step_twin_ratio": other["median"] / twin["median"],
    }


def flops_per_token(run: TrainingSteps, batch: Batch) -> float | str:
    """FLOPs of forward and backward per token; a text is the reason why there is no such number."""
    if "input_ids" not in batch:
        return "the inputs are not tokens"
    # the counter does not support every fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run.backward(batch)
    n_tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    return counter.get_total_flops() / n_tokens


def tokens_per_second(
    models: Mapping[str, Any], ids: Tensor, new_tokens: int, batch_sizes: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """By batch size ("batch_1", ...) and model: tokens per second of greedy generation with a key-value cache.

    The prompts are the first rows of `ids` (at least the largest batch size, T). Every model generates `new_tokens`
    tokens, also after an end of text. The models alternate for `rounds` rounds; the median is returned.
    """
    found = {}
    for size in batch_sizes:
        for model in models.values():
            _seconds(model, ids[:size], min(_WARM_UP_TOKENS, new_tokens))
        times = [[_seconds(model, ids[:size], new_tokens) for model in models.values()] for _ in range(rounds)]
        medians = [median(column) for column in zip(*times, strict=True)]
        speeds = [size * new_tokens / seconds for seconds in medians]
        found[f"batch_{size}"] = dict(zip(models, speeds, strict=True))
    return found


def _seconds(model: Any, ids: Tensor, new_tokens: int) -> float:
    began = now()
    generate(model, ids, torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    return now() - began


def now() -> float:
    """The time in seconds, after all queued work of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
