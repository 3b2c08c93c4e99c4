"""Before training: the gradient, for adapters that take their initial values from it."""

from __future__ import annotations

from typing import Any

import torch

from qpeft.methods.quantum_peft.fit_frames import fit_frames
from qpeft.training.blocks import spread
from qpeft.training.progress import Progress
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
