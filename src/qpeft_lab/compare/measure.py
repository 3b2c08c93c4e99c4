"""Time and memory of a method, alone on the machine; and its capacity, the ranks of the learned
updates of weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import qpeft
from qpeft.methods import of_config
from qpeft.methods.method import imported
from qpeft_lab.compare.rows import Row
from qpeft_lab.diagnose.adapters import effective_rank

_LEARNING_RATE = 1e-4  # not 0: a generator runs again only after its parameters changed
# SoRA's threshold, which increases over these steps, stays near 0
_PLANNED_STEPS = 100_000
# the smaller side of an update: the singular values of larger ones take minutes, except for factors
_LARGEST = 2048

_WARM_UP = 5
_TIMED = 30
TIMED_STEPS = _WARM_UP + _TIMED  # of a method; its reference takes twice as many

Batch = Mapping[str, Tensor]
Make = Callable[[], Any]


def stepping(model: Any) -> Callable[[Batch], float]:
    """A function that trains the model by a step on a batch and returns the milliseconds from
    forward to AdamW.
    """
    groups = qpeft.param_groups(model.train(), _LEARNING_RATE)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, fused=True)
    record = of_config(getattr(model, "active_peft_config", None))
    attach = None if record is None else getattr(imported(record.callback), "attach", None)
    if attach is not None:
        attach(optimizer, model, steps=_PLANNED_STEPS)

    def step(batch: Batch) -> float:
        began = now()
        optimizer.zero_grad()
        model(**batch).loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return 1000 * (now() - began)

    return step


def measure_cost(
    make_model: Make,
    make_reference: Make,
    batches: Sequence[Batch],
    warm_up: int = _WARM_UP,
    timed: int = _TIMED,
) -> dict[str, float]:
    """Measure a method's model, compared with a reference (usually LoRA). Each is built once.

    - `peak_mem_bytes`: on a GPU, the peak of allocated memory minus the memory that was allocated
      before the model was built; otherwise the peak resident set of the process, libraries
      included. Read after `warm_up` steps, before the reference is built.
    - `step_ms`, the median of `timed` steps after `warm_up`; `step_ratio` to the reference. The
      steps of both models alternate.
    - `noise`: the reference takes every step twice; the relative difference between the medians of
      the two.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [{name: part.to(device) for name, part in batch.items()} for batch in batches]
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step = stepping(make_model().to(device))
    for batch in islice(cycle(batches), warm_up):
        step(batch)
    memory = _peak_memory(before)
    reference = stepping(make_reference().to(device))
    times = [
        [step(batch), reference(batch), reference(batch)]
        for batch in islice(cycle(batches), warm_up + timed)
    ]
    own, other, twin = map(median, zip(*times[warm_up:], strict=True))
    return {
        "peak_mem_bytes": memory,
        "step_ms": own,
        "step_ratio": own / other,
        "noise": max(other / twin, twin / other) - 1,
    }


def now() -> float:
    """The time in seconds, after all queued work of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory(before: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() - before
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.no_grad()
def rank_fields(model: PeftModel) -> Row:
    """Numerical and effective rank of the updates of an adapter, means over the changed weights;
    DoRA's magnitudes not.

    There are no fields if the method adds nothing to weights, or multiplies them. `model` has run since its parameters
    changed.
    """
    record = of_config(model.active_peft_config)
    if record is not None and record.multiplies_weights:
        return {}
    updates: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        a, b = (getattr(layer, part, {}) for part in ("lora_A", "lora_B"))
        if (adapter := model.active_adapter) in b:
            updates[name] = b[adapter].weight.flatten(1), a[adapter].weight.flatten(1)
        elif adapter not in a and (update := getattr(layer, "get_delta_weight", None)):
            matrix = update(adapter).flatten(1)
            updates |= {name: matrix} if min(matrix.shape) <= _LARGEST else {}
    if not updates:
        return {}
    ranks = effective_rank(updates).values
    return {"rank_numerical": ranks["numerical_rank"], "rank_effective": ranks["entropy_rank"]}
