"""How long a study takes, from two training steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from qpeft_lab.compare.cell import Cell, read_data, settings_of, test_settings_of, untrained_model
from qpeft_lab.compare.measure import TIMED_STEPS, stepping
from qpeft_lab.compare.plan import Plan
from qpeft_lab.settings import FORWARD_SHARE


class Speed(NamedTuple):
    """Seconds on this machine, with the threads of a cell."""

    start: float  # to load and to adapt the base
    step: float  # of the optimizer
    example: float  # a block or an example that is scored


def speed_of(plan: Plan, method: str | None = None) -> Speed:
    """The speed of a method of the study, by its key; other adapters have about the same.

    The default is the study's reference, or the smallest method if that is not trained.

    The first of two steps prepares what later ones reuse, and does not count. Raises InputError if
    the base cannot be loaded.
    """
    key = method or plan.study.reference
    trained = [cell for cell in plan.final_cells({}) if cell.spec.rates]
    cell = next((cell for cell in trained if cell.method == key), trained[0])
    settings = settings_of(cell)
    task = read_data(settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _one_thread():
        began = time.perf_counter()
        model = untrained_model(cell).to(device)
        start = time.perf_counter() - began
        step = stepping(model)
        batch = task.collate(list(task.train[: settings.batch_size]))
        batch = {name: part.to(device) for name, part in batch.items()}
        step(batch)
        seconds = step(batch) / 1000
    return Speed(
        start,
        seconds * settings.gradient_accumulation_steps,
        seconds * FORWARD_SHARE / settings.batch_size,
    )


def seconds_of(cell: Cell, speed: Speed) -> float:
    """The time of a cell, without texts that it generates."""
    settings = settings_of(cell)
    if cell.role == "cost":  # of the method, and twice of the reference
        return 2 * speed.start + 3 * TIMED_STEPS * speed.step
    n_evaluation = len(read_data(settings).evaluation)
    if cell.spec.rates:
        evaluations = settings.evaluations(n_evaluation)
        scored = evaluations.number * evaluations.blocks
        seconds = settings.n_steps * speed.step + scored * speed.example
    else:
        seconds = n_evaluation * speed.example
    if cell.role != "tuning":
        seconds += len(read_data(test_settings_of(cell)).evaluation) * speed.example
    return speed.start + seconds


def forecast(plan: Plan, speed: Speed) -> float:
    """Seconds of all cells of a new study, one after the other."""
    return sum(seconds_of(cell, speed) for cell in plan.cells({}))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the cells of a study have by default."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
