"""The callback that adds logging, scoring, checkpoints and timing to an unchanged Trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from qpeft.errors import TrainingError
from qpeft.training.checkpoints import checkpoint_path, seal
from qpeft.training.interrupt import StopRequest
from qpeft.training.metrics_log import MetricsLog
from qpeft.training.progress import Progress
from qpeft.training.settings import Intervals
from qpeft.training.tasks import Score


class RunCallback(TrainerCallback):
    """Reports every loss, and logs, scores and saves at the intervals of `every`.

    The validation data is scored before the first step and after the last one, too. A checkpoint is also saved when a
    stop is requested, but not at the last step. A loss or gradient that is not finite raises TrainingError before the
    checkpoint of its step.
    """

    def __init__(self, folder: Path, every: Intervals, stop: StopRequest, progress: Progress):
        self.has_begun = False  # everything is loaded, including a checkpoint
        self._folder, self._every, self._stop, self._progress = folder, every, stop, progress
        self._seconds: list[float] = []
        self._began = 0.0

    def attach(self, trainer: Trainer, log: MetricsLog, evaluate: Callable[[], Score]) -> None:
        """Add the callback to `trainer`; `evaluate` gives the score of its model."""
        self._trainer, self._metrics, self._evaluate = trainer, log, evaluate
        trainer.add_callback(self)

    @property
    def seconds_per_step(self) -> float | None:
        """Median of forward, backward and optimizer step; None before the first step."""
        return median(self._seconds) if self._seconds else None

    def on_train_begin(self, args, state, control, **_: Any) -> None:
        self._progress.on_start(state.max_steps, state.global_step)
        if state.global_step == 0:
            self._score(0)

    def on_step_begin(self, args, state, control, **_: Any) -> None:
        self.has_begun = True  # random states are loaded last, after on_train_begin
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = get_total_norm(gradients).item()
        if not math.isfinite(norm):  # the step would make all parameters NaN before its loss is logged
            raise TrainingError(_not_finite("gradient's norm", norm, state.global_step + 1, args.learning_rate))

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs, step = kwargs["logs"], state.global_step
        state.log_history.clear()  # metrics.jsonl has it; checkpoints would grow with every step
        for name, what in (("loss", "training loss"), ("eval_loss", "validation loss")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise TrainingError(_not_finite(what, logs[name], step, args.learning_rate))
        if "eval_loss" in logs:
            self._metrics.append(step, logs)
        if "loss" not in logs:  # a score, or the Trainer's summary
            return
        self._seconds.append(time.perf_counter() - self._began)  # reading the loss waits for the device
        self._progress.on_step(step, logs["loss"])
        if step % self._every.log == 0 or step == state.max_steps:
            self._metrics.append(step, logs)
        if step % self._every.evaluate == 0 or step == state.max_steps:
            self._score(step)

    def on_step_end(self, args, state, control, **_: Any) -> None:
        if state.global_step < state.max_steps:  # after the last step the adapter is saved
            control.should_training_stop |= self._stop.wanted
            control.should_save = self._stop.wanted or state.global_step % self._every.save == 0

    def on_save(self, args, state, control, **_: Any) -> None:
        self._metrics.sync()
        seal(checkpoint_path(self._folder, state.global_step))

    def _score(self, step: int) -> None:
        score = self._evaluate()
        known = {name: value for name, value in score.to_dict().items() if value is not None}
        self._trainer.log({f"eval_{name}": value for name, value in known.items()})
        self._progress.on_eval(step, score)


def _not_finite(what: str, value: float, step: int, lr: float) -> str:
    return (
        f"the {what} is {value} at step {step}. This step was not saved. Start again in another run folder with a "
        f"lower lr (it is {lr:g}), a longer warmup, or dtype float32 instead of bfloat16"
    )
