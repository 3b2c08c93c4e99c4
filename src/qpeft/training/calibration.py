"""Before training: what Quantum-PEFT needs to know of the run, its gradient, and says of it, its rate."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from qpeft.methods.quantum_peft.fit_frames import fit_frames
from qpeft.training.blocks import spread
from qpeft.training.progress import Progress
from qpeft.training.settings import TrainSettings
from qpeft.training.tasks import Task

N_BLOCKS = 64  # more hardly move the leading directions


def fit_to_gradient(model: Any, task: Task, batch_size: int, progress: Progress) -> None:
    """Show an adapter that begins in the loss gradient's directions that gradient; others need nothing.

    The blocks, or examples, are spread over the training data, and the same for every run on it.
    """
    generators = getattr(getattr(model, "base_model", None), "generators", {})
    if not any(generator.needs_fit for generator in generators.values()):
        return
    progress.on_stage("Reading the gradient's directions")
    chosen = spread(N_BLOCKS, list(task.train))
    batches = [task.collate(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]
    fit_frames(model.to("cuda" if torch.cuda.is_available() else "cpu"), batches)


def warn_of_a_short_way(settings: TrainSettings, config: Any) -> None:
    """Warn if the rate and the number of steps leave Quantum-PEFT's angles about where they begin."""
    if getattr(config, "family", None) != "pauli" or config.freeze_angles or config.frame == "gradient":
        return  # in the gradient's own directions a short way is enough
    way = settings.steps * settings.lr * config.angle_scale / 2  # Adam moves by about its rate, which falls to 0
    if way < 2:
        warnings.warn(
            f"angles can hardly move: at most {way:.2g} radians in {settings.steps} steps, and several are wanted; "
            "raise the learning rate, the steps or angle_scale",
            stacklevel=2,
        )
