"""What qpeft adds to an unchanged Trainer: its log, its score, its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from qpeft.errors import TrainingError
from qpeft.training.checkpoints import checkpoint_path, seal
from qpeft.training.interrupt import StopRequest
from qpeft.training.metrics_log import MetricsLog
from qpeft.training.progress import Progress
from qpeft.training.tasks import Score


class Logging(TrainerCallback):
    """Every step's loss to the progress, every `every`-th to metrics.jsonl; a loss that is not finite ends the run.

    It comes before the step's checkpoint, so no checkpoint holds what such a loss left.
    """

    def __init__(self, log: MetricsLog, every: int, progress: Progress):
        self._log, self._every, self._progress = log, every, progress

    def on_train_begin(self, args, state, control, **_: Any) -> None:
        self._progress.on_start(state.max_steps, state.global_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = get_total_norm(gradients).item()
        if not math.isfinite(norm):  # the step would spoil every number before its loss is logged
            raise TrainingError(_not_finite("grad_norm", norm, state.global_step + 1, args.learning_rate))

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        state.log_history.clear()  # metrics.jsonl has it; checkpoints would grow with every step
        if not {"loss", "eval_loss"} & logs.keys():
            return  # the Trainer's summary
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise TrainingError(_not_finite(name, logs[name], state.global_step, args.learning_rate))
        if "loss" in logs:
            self._progress.on_step(state.global_step, logs["loss"])
        if "eval_loss" in logs or state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._log.append(state.global_step, logs)


class Scoring(TrainerCallback):
    """Scores the validation data before the first step, every `every` steps, and after the last."""

    def __init__(
        self,
        evaluate: Callable[[], Score],
        every: int,
        log: Callable[[dict[str, float]], None],
        progress: Progress,
    ):
        self._evaluate, self._every, self._log, self._progress = evaluate, every, log, progress

    def on_train_begin(self, args, state, control, **_: Any) -> None:
        if state.global_step == 0:
            self._score(0)

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        due = state.global_step % self._every == 0 or state.global_step == state.max_steps
        if "loss" in logs and due:
            self._score(state.global_step)

    def _score(self, step: int) -> None:
        score = self._evaluate()
        self._log({f"eval_{name}": value for name, value in score.to_dict().items()})
        self._progress.on_eval(step, score)


class Saving(TrainerCallback):
    """A checkpoint every `every` steps and when a stop is wanted, but for the last step: the adapter follows it."""

    def __init__(self, folder: Path, every: int, stop: StopRequest, log: MetricsLog):
        self._folder, self._every, self._stop, self._log = folder, every, stop, log

    def on_step_end(self, args, state, control, **_: Any) -> None:
        if state.global_step == state.max_steps:
            return
        control.should_training_stop |= self._stop.wanted
        control.should_save = self._stop.wanted or state.global_step % self._every == 0

    def on_save(self, args, state, control, **_: Any) -> None:
        self._log.sync()
        seal(checkpoint_path(self._folder, state.global_step))


class Timing(TrainerCallback):
    """Seconds of each step: forward, backward, optimiser. Must come before callbacks that work on `on_log`."""

    def __init__(self) -> None:
        self.has_begun = False  # everything is loaded, a checkpoint too
        self._seconds: list[float] = []
        self._began = 0.0

    @property
    def median(self) -> float | None:
        """The middle one; None before any step."""
        return median(self._seconds) if self._seconds else None

    def on_step_begin(self, args, state, control, **_: Any) -> None:
        self.has_begun = True  # random states are loaded last, after on_train_begin
        self._began = time.perf_counter()

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:  # reading the loss has waited for the device
            self._seconds.append(time.perf_counter() - self._began)


def _not_finite(name: str, value: float, step: int, lr: float) -> str:
    what = {"loss": "training loss", "grad_norm": "gradient's norm", "eval_loss": "validation loss"}[name]
    return (
        f"the {what} is {value} at step {step}. Nothing of this step was saved. Begin again in another run folder "
        f"with a lower lr (it is {lr:g}), a longer warmup, or dtype float32"
    )
