"""Steps of a training, one at a time: what they take, and what they compute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import qpeft
from qpeft.compare.measurements.inference import synchronise
from qpeft.core.adapter_form import form_of
from qpeft.training.settings import TrainSettings

_RATE = 1e-4  # the numbers change, so that generators run anew, and nothing diverges
_PLANNED_STEPS = 100_000  # over which SoRA spreads its threshold: in a few steps it would be a storm

Batch = Mapping[str, Tensor]


class TrainingSteps:
    """A model with its optimiser, and SoRA with its threshold, a step at a time."""

    def __init__(self, model: Any, settings: TrainSettings):
        self.model = model.train()
        self.device = next(model.parameters()).device
        self._max_norm = settings.max_grad_norm
        groups = qpeft.param_groups(model, _RATE, settings.weight_decay)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        if (form := form_of(model)) is not None:
            form.on_optimizer(self._optimizer, _PLANNED_STEPS)

    def step(self, batch: Batch) -> float:
        """Milliseconds of forward, backward, clipping and AdamW."""
        synchronise(self.device)
        began = time.perf_counter()
        self.backward(batch)
        if self._max_norm:
            clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        synchronise(self.device)
        return 1000 * (time.perf_counter() - began)

    def backward(self, batch: Batch) -> None:
        """Fresh gradients."""
        self._optimizer.zero_grad()
        self.model(**batch).loss.backward()


def compare_steps(
    run: TrainingSteps, other: TrainingSteps, batches: Sequence[Batch], warm_up: int, timed: int
) -> dict[str, Any]:
    """`step_ms` and `reference_step_ms` = {median, p10, p90} of steps in turns, and `step_ratio` of the medians."""
    times = [(run.step(batch), other.step(batch)) for batch in islice(cycle(batches), warm_up + timed)]
    own, others = (_spread(column) for column in zip(*times[warm_up:], strict=True))
    return {"step_ms": own, "reference_step_ms": others, "step_ratio": own["median"] / others["median"]}


def _spread(times: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(times, (10, 50, 90)).tolist()
    return {"median": middle, "p10": low, "p90": high}


def flops_per_token(run: TrainingSteps, batch: Batch) -> float | str:
    """Of one step, forward and backward; or why there is no such number."""
    if "input_ids" not in batch:
        return "the inputs are not tokens"
    # the counter knows not every fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run.backward(batch)
    n_tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    return counter.get_total_flops() / n_tokens
