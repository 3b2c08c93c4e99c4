"""Time and memory of a method, measured while nothing else runs on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from qpeft.compare.measurements.speed import Batch, TrainingSteps, compare_steps, flops_per_token, tokens_per_second
from qpeft.errors import ConfigError, QpeftError
from qpeft.training.generation import has_room
from qpeft.training.settings import TrainSettings

Make = Callable[[], Any]


def measure_cost(
    make_model: Make,
    make_reference: Make,
    make_base: Make,
    batches: Sequence[Batch],
    settings: TrainSettings,
    *,
    warm_up: int = 5,
    timed: int = 30,
    prompt: int = 64,
    new_tokens: int = 128,
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 2,
) -> dict[str, Any]:
    """Measure a method's model, compared with a reference (usually LoRA) and with the base. Each is built once.

    - `peak_mem_bytes` with `peak_mem_kind`: on a GPU, the peak of allocated memory minus the memory that was allocated
      before the model was built, with `peak_mem_reserved_bytes`; otherwise the peak resident set of the process,
      libraries included. Read after `warm_up` steps, before the reference is built.
    - `flops_per_token` of a training step, counted by `torch.utils.flop_counter`: matrix products, convolutions and
      attention. Elementwise operations, such as the gates of a circuit, are not counted; see `step_ms`.
    - `step_ms` = {median, p10, p90} of `timed` steps after `warm_up`, `reference_step_ms` and `step_ratio`. The steps
      of both models alternate. The reference takes each step twice: `step_twin_ratio`, its median over that of its
      twin, differs from 1 by the noise of the measurement.
    - `infer_tok_s`: {"batch_1": {"base", "unmerged", "merged"}, ...}, generated tokens per second after prompts of
      `prompt` tokens. Base and unmerged model alternate; the merged model is measured after them, because merging
      changes the model in place. `infer_overhead_pct` = 100 (base / unmerged - 1) at the first batch size. The base is
      measured twice: `infer_twin_ratio` is the ratio of the batch size at which the two differ most.

    Missing values are None, with a reason under `null_reasons`, by dotted name.

    Raises:
        ConfigError: no batches.
    """
    if not batches:
        raise ConfigError("cost is measured on batches, and there are none; give at least one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [{name: part.to(device) for name, part in batch.items()} for batch in batches]
    before = _start_memory()
    run = TrainingSteps(make_model().to(device), settings)
    for batch in islice(cycle(batches), warm_up):
        run.step(batch)
    found: dict[str, Any] = {"null_reasons": {}, **_peak_memory(before)}
    _add(found, "flops_per_token", flops_per_token(run, batches[0]))
    found |= compare_steps(run, TrainingSteps(make_reference().to(device), settings), batches, warm_up, timed)
    model = run.model
    del run  # with the optimizer's state
    ids = _prompts(batches, prompt, max(batch_sizes))
    reason = _no_generation(model, ids, new_tokens)
    if reason is not None or isinstance(ids, str):
        _add(found, "infer_tok_s", reason)
        _add(found, "infer_overhead_pct", reason)
        return found
    arguments = (ids, new_tokens, batch_sizes, rounds)
    base = make_base().to(device)
    speeds = tokens_per_second({"base": base, "unmerged": model, "twin": base}, *arguments)
    twins = {size: speed.pop("twin") for size, speed in speeds.items()}
    merged = _merge(model)
    if isinstance(merged, str):
        found["null_reasons"] |= {f"infer_tok_s.{size}.merged": merged for size in speeds}
    merged_speeds = {} if isinstance(merged, str) else tokens_per_second({"merged": merged}, *arguments)
    first = speeds[f"batch_{batch_sizes[0]}"]
    return found | {
        "infer_tok_s": {size: speed | merged_speeds.get(size, {"merged": None}) for size, speed in speeds.items()},
        "infer_overhead_pct": 100 * (first["base"] / first["unmerged"] - 1),
        "infer_twin_ratio": max((speeds[size]["base"] / twins[size] for size in speeds), key=lambda r: max(r, 1 / r)),
    }


def _start_memory() -> tuple[int, int]:
    """Bytes allocated and reserved on the GPU now, from where its peak is measured."""
    if not torch.cuda.is_available():
        return 0, 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _peak_memory(before: tuple[int, int]) -> dict[str, Any]:
    if torch.cuda.is_available():
        return {
            "peak_mem_bytes": torch.cuda.max_memory_allocated() - before[0],
            "peak_mem_reserved_bytes": torch.cuda.max_memory_reserved() - before[1],
            "peak_mem_kind": "allocated on the GPU",
        }
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_mem_bytes": peak, "peak_mem_kind": "resident set of the process"}


def _prompts(batches: Sequence[Batch], length: int, n: int) -> Tensor | str:
    """Prompts (n, length) from the batches' real tokens, repeated if they are too few; or why there are none."""
    if "input_ids" not in batches[0]:
        return "the model reads no text"
    real = [batch["input_ids"][batch["attention_mask"].bool()] for batch in batches if "attention_mask" in batch]
    ids = torch.cat(real or [batch["input_ids"].flatten() for batch in batches])
    return ids.repeat(-(-n * length // len(ids)))[: n * length].view(n, length)


def _no_generation(model: Any, ids: Tensor | str, new_tokens: int) -> str | None:
    """Why the model cannot generate `new_tokens` tokens after the prompts; None if it can."""
    if isinstance(ids, str):
        return ids
    if not model.can_generate():
        return "the model writes no text"
    if not has_room(model, ids.shape[1] + new_tokens):
        return f"the model's context has no room for {ids.shape[1]} and {new_tokens} tokens"
    return None


def _merge(model: Any) -> Any:
    """The base with the adapter merged into its weights, or the reason why that is impossible."""
    if not hasattr(model, "merge_and_unload"):
        return "there is nothing to merge into a weight"
    try:
        return model.merge_and_unload()
    except (QpeftError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0] or type(error).__name__


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    """Add a measurement; a text is the reason why it is missing."""
    if isinstance(value, str):
        found["null_reasons"][name] = value
    found[name] = None if isinstance(value, str) else value
