"""How long a study will take, from a few timed steps of every method."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.compare.cell import Cell
from qpeft.files import read_json, write_json

_STEPS = 5
_TIMED = ("start", "step", "block", "eval_every", "valid_blocks", "test_blocks")
_TIMED_IN_A_COST_CELL = 80  # steps of the method and of the reference, warm-up and generated tokens among them


def estimate_hours(
    tuning: Sequence[Cell], final: Sequence[Cell], cost: Sequence[Cell], folder: Path
) -> dict[str, float]:
    """Hours of each phase with one worker. What was timed once is kept in `folder`/estimate.json."""
    timed = _timed(final, folder)
    seconds = {
        "tuning": sum(_training(cell, timed[cell.hash]) for cell in tuning),
        "final": sum(_training(cell, timed[cell.hash]) + _testing(cell, timed[cell.hash]) for cell in final),
        "cost": sum(timed[cell.hash]["start"] + _TIMED_IN_A_COST_CELL * timed[cell.hash]["step"] for cell in cost),
    }
    return {phase: total / 3600 for phase, total in seconds.items()}


def _training(cell: Cell, timed: dict[str, float]) -> float:
    n_scores = 1 + cell.recipe.training.steps / timed["eval_every"]
    return timed["start"] + cell.steps * timed["step"] + n_scores * timed["valid_blocks"] * timed["block"]


def _testing(cell: Cell, timed: dict[str, float]) -> float:
    return timed["start"] + (timed["test_blocks"] + 64) * timed["block"]


def _timed(cells: Sequence[Cell], folder: Path) -> dict[str, dict[str, float]]:
    path = folder / "estimate.json"
    try:
        known = {name: timed for name, timed in read_json(path).items() if _is_whole(timed)}
    except (OSError, ValueError, AttributeError):  # an estimate is worth no error
        known = {}
    missing = {cell.hash: cell for cell in cells if cell.hash not in known}
    if missing:
        known |= {name: _time(cell) for name, cell in missing.items()}
        write_json(path, known)
    return known


def _is_whole(timed: Any) -> bool:
    return isinstance(timed, dict) and all(type(timed.get(name)) in (int, float) for name in _TIMED)


def _time(cell: Cell) -> dict[str, float]:
    """Seconds to load, for a step, and to score a block; how many blocks are scored, and how often."""
    import torch

    from qpeft.compare import cell_run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a cell has
    try:
        began = time.perf_counter()
        model, task = cell_run.started(cell)
        start = time.perf_counter() - began
        batch = task.collate(task.train[: cell.recipe.training.batch_size])
        seconds = [_step(model, task, batch) for _ in range(_STEPS)] if cell.steps else [0.0]
        began = time.perf_counter()
        with torch.no_grad():
            model(**batch)
        block = (time.perf_counter() - began) / len(batch["labels"])
        return {
            "start": start,
            "step": statistics.median(seconds),
            "block": block,
            "eval_every": cell_run.settings_of(cell, Path()).intervals().evaluate,
            "valid_blocks": len(task.evaluation),
            "test_blocks": cell_run.n_test_blocks(cell),
        }
    finally:
        torch.set_num_threads(threads)


def _step(model: Any, task: Any, batch: dict[str, Any]) -> float:
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6)
    began = time.perf_counter()
    inputs = dict(batch)
    labels = inputs["labels"] if task.compute_loss is None else inputs.pop("labels")
    outputs = model(**inputs)
    loss = outputs.loss if task.compute_loss is None else task.compute_loss(outputs, labels)
    loss.backward()
    optimiser.step()
    return time.perf_counter() - began
