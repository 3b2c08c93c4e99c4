"""How long a study will take: from a few timed steps of every method, or at a given speed of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from qpeft.compare.cell import Cell
from qpeft.files import write_json

if TYPE_CHECKING:
    import torch

_STEPS = 5
_STEPS_OF_A_COST_CELL = 80  # of the method and of the reference, with warm-up and generated tokens
_FORWARD = 1 / 3  # of a training step's work


class Timing(BaseModel):
    """Measured seconds of a method, and how many blocks its cells score."""

    model_config = ConfigDict(frozen=True)

    start: float  # to load data and model
    step: float
    block: float  # to score a block
    eval_every: int  # steps
    valid_blocks: int
    test_blocks: int


_TIMINGS = TypeAdapter(dict[str, Timing])


def estimate_hours(
    tuning: Sequence[Cell],
    final: Sequence[Cell],
    cost: Sequence[Cell],
    folder: Path,
    examples_per_second: float | None = None,
) -> dict[str, float]:
    """Hours of each phase with one worker. Measured times are stored in `folder`/estimate.json.

    With `examples_per_second`, the speed of training, nothing is measured: no weights are read.
    """
    if examples_per_second is None:
        timed = _timings(final, folder)
    else:
        timed = {cell.hash: _at(examples_per_second, cell) for cell in final}
    seconds = {
        "tuning": sum(_training(cell, timed[cell.hash]) for cell in tuning),
        "final": sum(_training(cell, timed[cell.hash]) + _testing(timed[cell.hash]) for cell in final),
        "cost": sum(timed[cell.hash].start + _STEPS_OF_A_COST_CELL * timed[cell.hash].step for cell in cost),
    }
    return {phase: total / 3600 for phase, total in seconds.items()}


def _training(cell: Cell, timing: Timing) -> float:
    n_scores = 1 + cell.setup.training.steps / timing.eval_every
    return timing.start + cell.steps * timing.step + n_scores * timing.valid_blocks * timing.block


def _testing(timing: Timing) -> float:
    return timing.start + (timing.test_blocks + 64) * timing.block


def _timings(cells: Sequence[Cell], folder: Path) -> dict[str, Timing]:
    """By hash of a method."""
    path = folder / "estimate.json"
    try:
        known = _TIMINGS.validate_json(path.read_bytes() if path.is_file() else b"")  # reading a pipe would block
    except (OSError, ValidationError):  # missing or damaged: measured again
        known = {}
    missing = {cell.hash: cell for cell in cells if cell.hash not in known}
    if missing:
        known |= {name: _time(cell) for name, cell in missing.items()}
        write_json(path, _TIMINGS.dump_python(known))
    return known


def _at(examples_per_second: float, cell: Cell) -> Timing:
    """The timing at a speed of training that is the same for all methods. Scoring is a forward pass alone."""
    from qpeft.compare.cell_run import no_warnings, read_test_data, settings_of, shared_task

    settings = settings_of(cell, Path())
    with no_warnings():
        n_valid, n_test = len(shared_task(settings).evaluation), len(read_test_data(cell).evaluation)
    return Timing(
        start=0.0,
        step=settings.batch_size * settings.gradient_accumulation_steps / examples_per_second,
        block=_FORWARD / examples_per_second,
        eval_every=settings.intervals().evaluate,
        valid_blocks=n_valid,
        test_blocks=n_test,
    )


def _time(cell: Cell) -> Timing:
    import torch

    if ".py:" in str(cell.spec.backend.get("backend")):  # the user's file is executed by a run only
        cell = cell.model_copy(update={"spec": cell.spec.model_copy(update={"backend": {}})})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a cell
    try:
        return _timed(cell)
    finally:
        torch.set_num_threads(threads)
        torch.cuda.empty_cache()  # the cells run in other processes, on the same GPU


def _timed(cell: Cell) -> Timing:
    import torch

    from qpeft.compare.cell_run import no_warnings, read_test_data, settings_of, untrained_model
    from qpeft.compare.measurements.speed import TrainingSteps, now

    settings = settings_of(cell, Path())
    with no_warnings():
        began, device = now(), _device()
        model, task = untrained_model(cell)
        model = model.to(device)
        start = now() - began
        batch = {name: part.to(device) for name, part in task.collate(task.train[: settings.batch_size]).items()}
        step = 0.0
        if cell.steps:
            run = TrainingSteps(model, settings)
            step = median(run.step(batch) for _ in range(_STEPS)) / 1000
        began = now()
        with torch.no_grad():
            model(**batch)
        block = (now() - began) / len(batch["labels"])
        n_test_blocks = len(read_test_data(cell).evaluation)
    return Timing(
        start=start,
        step=step,
        block=block,
        eval_every=settings.intervals().evaluate,
        valid_blocks=len(task.evaluation),
        test_blocks=n_test_blocks,
    )


def _device() -> torch.device:
    """The device on which a cell trains."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
