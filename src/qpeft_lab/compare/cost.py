"""Time and memory of a method, measured while nothing else runs on the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import qpeft
from qpeft.core.adapter_form import form_of

_LEARNING_RATE = 1e-4  # not 0: a generator runs again only after its parameters changed
_PLANNED_STEPS = 100_000  # SoRA's threshold, which increases over these steps, stays near 0

Batch = Mapping[str, Tensor]
Make = Callable[[], Any]


class TrainingSteps:
    """Single training steps of a model with AdamW."""

    def __init__(self, model: Any, max_grad_norm: float = 1.0, weight_decay: float = 0.0):
        self.model = model.train()
        self._max_norm = max_grad_norm
        groups = qpeft.param_groups(model, _LEARNING_RATE, weight_decay)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        form: Any = form_of(model)
        if hasattr(form, "gates"):  # SoRA's
            qpeft.SoRACallback.attach(self._optimizer, model, steps=_PLANNED_STEPS)

    def step(self, batch: Batch) -> float:
        """Milliseconds of forward, backward, clipping and AdamW."""
        began = now()
        self._optimizer.zero_grad()
        self.model(**batch).loss.backward()
        if self._max_norm:
            clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        return 1000 * (now() - began)


def measure_cost(
    make_model: Make,
    make_reference: Make,
    batches: Sequence[Batch],
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
    *,
    warm_up: int = 5,
    timed: int = 30,
) -> dict[str, Any]:
    """Measure a method's model, compared with a reference (usually LoRA). Each is built once.

    - `peak_mem_bytes` with `peak_mem_kind`: on a GPU, the peak of allocated memory minus the memory that was allocated
      before the model was built; otherwise the peak resident set of the process, libraries included. Read after
      `warm_up` steps, before the reference is built.
    - `step_ms`, the median of `timed` steps after `warm_up`, with `step_ms_p10` and `step_ms_p90`; `step_ratio` to the
      reference. The steps of both models alternate.
    - `noise`: the reference takes every step twice; the relative difference between the medians of the two.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [{name: part.to(device) for name, part in batch.items()} for batch in batches]
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run = TrainingSteps(make_model().to(device), max_grad_norm, weight_decay)
    for batch in islice(cycle(batches), warm_up):
        run.step(batch)
    memory = _peak_memory(before)
    reference = TrainingSteps(make_reference().to(device), max_grad_norm, weight_decay)
    runs = (run, reference, reference)
    times = [[each.step(batch) for each in runs] for batch in islice(cycle(batches), warm_up + timed)]
    (low, _, _), (middle, other, twin), (high, _, _) = np.percentile(times[warm_up:], (10, 50, 90), axis=0).tolist()
    steps = {"step_ms": middle, "step_ms_p10": low, "step_ms_p90": high, "step_ratio": middle / other}
    return {**memory, **steps, "noise": max(other / twin, twin / other) - 1}


def now() -> float:
    """The time in seconds, after all queued work of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory(before: int) -> dict[str, Any]:
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() - before
        return {"peak_mem_bytes": peak, "peak_mem_kind": "allocated on the GPU"}
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_mem_bytes": peak, "peak_mem_kind": "resident set of the process"}
