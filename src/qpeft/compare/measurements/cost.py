"""What a method costs in time and memory, measured while nothing else runs on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from qpeft.compare.measurements.inference import has_room, tokens_per_second
from qpeft.compare.measurements.step_time import Batch, TrainingSteps, compare_steps, flops_per_token
from qpeft.errors import ConfigError, QpeftError
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
    """Figures of one method's model beside a reference's (stock LoRA) and the bare base's.

    - `peak_mem_bytes` with `peak_mem_kind`: on a GPU what is allocated at most beyond what was there before the model,
      with `peak_mem_reserved_bytes`; otherwise the largest resident set of this process, libraries included. Read
      after the first `warm_up` steps, before the reference is there.
    - `flops_per_token` of a training step, forward and backward, as `torch.utils.flop_counter` counts them: those of
      matrix products and convolutions, attention's among them. What is done entry by entry, as a circuit's gates are,
      counts for nothing: see `step_ms`.
    - `step_ms` = {median, p10, p90} over `timed` steps after `warm_up`: gradients cleared, forward, backward, clipping,
      AdamW; `reference_step_ms`, the same of the reference in turns with the model; `step_ratio` of the medians.
    - `infer_tok_s`: {"batch_1": {"base", "unmerged", "merged"}, ...}, tokens a second that are written behind prompts
      of `prompt` tokens; all in turns. `infer_overhead_pct` = 100 (base / unmerged - 1) at the first batch size.

    What cannot be measured is None, with a reason under `null_reasons`, by dotted name.

    Raises:
        ConfigError: no batches.
    """
    if not batches:
        raise ConfigError("cost is measured on batches, and there are none; give at least one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [{name: part.to(device) for name, part in batch.items()} for batch in batches]
    found: dict[str, Any] = {"null_reasons": {}}
    memory = _Memory(device)
    run = TrainingSteps(make_model().to(device), settings)
    for batch in islice(cycle(batches), warm_up):
        run.step(batch)
    found |= memory.peak()
    _add(found, "flops_per_token", flops_per_token(run, batches[0]))
    found |= compare_steps(run, TrainingSteps(make_reference().to(device), settings), batches, warm_up, timed)
    del run
    ids = _prompts(batches, prompt, max(batch_sizes))
    speeds = _speeds(make_model, make_base, device, ids, new_tokens, batch_sizes, rounds)
    return _with_speeds(found, speeds, batch_sizes)


class _Memory:
    """The most memory since it was made."""

    def __init__(self, device: torch.device):
        self._device, self._before = device, (0, 0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)

    def peak(self) -> dict[str, Any]:
        if self._device.type != "cuda":
            return {"peak_mem_bytes": peak_resident_bytes(), "peak_mem_kind": "resident set of the process"}
        allocated, reserved = self._before
        return {
            "peak_mem_bytes": torch.cuda.max_memory_allocated(self._device) - allocated,
            "peak_mem_reserved_bytes": torch.cuda.max_memory_reserved(self._device) - reserved,
            "peak_mem_kind": "allocated on the GPU",
        }


def _prompts(batches: Sequence[Batch], length: int, n: int) -> Tensor | str:
    """Prompts (n, length) from the batches' real tokens, repeated where they are too few; or why there are none."""
    if "input_ids" not in batches[0]:
        return "the model reads no text"
    real = [batch["input_ids"][batch["attention_mask"].bool()] for batch in batches if "attention_mask" in batch]
    ids = torch.cat(real or [batch["input_ids"].flatten() for batch in batches])
    return ids.repeat(-(-n * length // len(ids)))[: n * length].view(n, length)


def _speeds(
    make_model: Make,
    make_base: Make,
    device: torch.device,
    ids: Tensor | str,
    new_tokens: int,
    batch_sizes: Sequence[int],
    rounds: int,
) -> tuple[dict[str, dict[str, float]] | str, str | None]:
    """Tokens a second or why there are none, and why nothing was merged."""
    if isinstance(ids, str):
        return ids, None
    models: dict[str, Any] = {"base": make_base().to(device)}
    if not models["base"].can_generate():
        return "the model writes no text", None
    models["unmerged"] = make_model().to(device)
    if not has_room(models["unmerged"], ids.shape[1] + new_tokens):
        return f"the model's context has no room for {ids.shape[1]} and {new_tokens} tokens", None
    merged = _merged(make_model().to(device))
    if not isinstance(merged, str):
        models["merged"] = merged
    speeds = tokens_per_second(models, ids, new_tokens, batch_sizes, rounds)
    return speeds, merged if isinstance(merged, str) else None


def _merged(model: Any) -> Any:
    """The base with the adapter in its weights, or why that cannot be."""
    if not hasattr(model, "merge_and_unload"):
        return "there is nothing to merge into a weight"
    try:
        return model.merge_and_unload()
    except (QpeftError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0] or type(error).__name__


def _with_speeds(found: dict[str, Any], speeds: tuple[Any, str | None], sizes: Sequence[int]) -> dict[str, Any]:
    rates, not_merged = speeds
    if isinstance(rates, str):
        _add(found, "infer_tok_s", rates)
        _add(found, "infer_overhead_pct", rates)
        return found
    first = rates[f"batch_{sizes[0]}"]
    found |= {"infer_tok_s": rates, "infer_overhead_pct": 100 * (first["base"] / first["unmerged"] - 1)}
    if not_merged is not None:
        for batch, by_name in rates.items():
            by_name["merged"] = None
            found["null_reasons"][f"infer_tok_s.{batch}.merged"] = not_merged
    return found


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    """The figure; a text is the reason why there is none."""
    if isinstance(value, str):
        found["null_reasons"][name] = value
    found[name] = None if isinstance(value, str) else value


def peak_resident_bytes() -> int:
    """The largest resident set of this process so far."""
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
