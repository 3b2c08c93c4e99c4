"""Fine-tune with an unchanged `transformers.Trainer`, in a folder from which a killed run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import qpeft
from qpeft.errors import BackendError, CheckpointError, ConfigError, InputError, TrainingError
from qpeft.files import is_disk_full
from qpeft.training import outputs
from qpeft.training.callbacks import Logging, Saving, Scoring, Timing
from qpeft.training.checkpoints import find_spoiled, last_whole, prune, step_of
from qpeft.training.interrupt import StopRequest
from qpeft.training.lock import locked
from qpeft.training.metrics_log import MetricsLog, read_scores, read_seconds
from qpeft.training.prepare import Prepared, prepare
from qpeft.training.progress import Progress, Silent
from qpeft.training.result import TrainResult, read_result, write_result
from qpeft.training.run_folder import RunFolder
from qpeft.training.settings import Intervals, TrainSettings
from qpeft.training.tasks import Score, Task


@dataclass(frozen=True)
class FittedRun:
    """A trained model with its scores, in a run folder that holds no adapter yet."""

    settings: TrainSettings
    folder: RunFolder
    ready: Prepared  # the model is the trained one, on the device it was trained on
    before: Score
    after: Score
    seconds: float  # from the first score to the last, with saving, without interruptions
    seconds_per_step: float | None  # median since the last resume, forward to optimizer
    circuits: dict[str, Any] | None  # what they cost, where they did not run on the exact simulator

    @property
    def model(self) -> Any:
        return self.ready.model


def train(
    settings: TrainSettings,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    task: Task | None = None,
) -> TrainResult:
    """Run `settings` to the end, or resume the run in `settings.out`; a finished run is left as it is.

    On one device and thread count, a run that was killed and resumed ends with the same bits as an unbroken one.

    Args:
        settings: What is trained, on what, and where it is kept.
        progress: Receives the run's events.
        callbacks: Further ones for the Trainer, called after qpeft's own.
        task: The data, where it has been read already for settings of the same model, data and lengths.

    Raises:
        InputError: something in the settings, the data, the base or the folder is not usable; nothing was done.
        TrainingError: a loss is not finite, the disk is full, or what has been trained cannot be used; earlier
            checkpoints are intact.
        KeyboardInterrupt: stopped by Ctrl-C, after saving the step in progress.
    """
    progress = progress or Silent()
    folder = _checked_folder(settings)
    if (finished := read_result(folder.result)) is not None:
        return finished
    with locked(folder.path):
        return publish(_fit(settings, folder, progress, callbacks, task), progress)


def fit(
    settings: TrainSettings,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    task: Task | None = None,
) -> FittedRun:
    """Train as `train` does, resumable in the same way, and return the model: nothing is exported or published.

    Arguments and errors are those of `train`.
    """
    folder = _checked_folder(settings)
    with locked(folder.path):
        return _fit(settings, folder, progress or Silent(), callbacks, task)


def publish(run: FittedRun, progress: Progress) -> TrainResult:
    """Write the compact and the exported adapter, the model card and result.json, which declares the run finished."""
    progress.on_stage("Writing the adapter")
    folder, ready = run.folder, run.ready
    try:
        result = TrainResult(
            out=folder.path,
            model=run.settings.model,
            method=run.settings.record.key,
            steps=run.settings.steps,
            before=run.before,
            after=run.after,
            trainable=outputs.count_trainable(ready.model),
            deployed=outputs.write_adapter(ready.model, folder, run.settings.method, ready.task),
            stored_bytes=outputs.weight_bytes(folder.adapter),
            exported_bytes=outputs.weight_bytes(folder.exported),
            seconds=run.seconds,
            seconds_per_step=run.seconds_per_step,
            data_sha256=ready.identity["data"],
            task=run.settings.task,
            trainable_head=outputs.count_trainable(ready.model, ready.task.head),
            circuits=run.circuits,
        )
        outputs.write_card(folder, result, needs_qpeft=outputs.needs_qpeft(ready.model))
        write_result(folder.result, result)
    except Exception as error:
        _explain(error, folder, has_begun=True)
        raise
    return result


def _checked_folder(settings: TrainSettings) -> RunFolder:
    settings.check()
    folder = RunFolder(Path(settings.out).expanduser())
    folder.check(settings)
    return folder


def _fit(
    settings: TrainSettings,
    folder: RunFolder,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
    task: Task | None,
) -> FittedRun:
    """`fit` in a folder that is locked."""
    ready = prepare(settings, progress, task)
    folder.claim(settings, ready.identity)
    if ready.circuits is not None:
        ready.circuits.jobs.log_to(folder.jobs)
        ready.circuits.jobs.on_failure = progress.on_note
        ready.circuits.check_budget(settings.steps - _steps_done(folder))
        progress.on_note(f"circuits on {ready.circuits}")
    timing = Timing()
    try:
        _run_trainer(settings, ready, folder, progress, timing, callbacks)
        scores = read_scores(folder.metrics, ready.task.score_class)
    except Exception as error:
        prune(folder.checkpoints)
        _explain(error, folder, timing.has_begun)
        raise
    seconds = read_seconds(folder.metrics)
    return FittedRun(settings, folder, ready, scores[0], scores[-1], seconds, timing.median, _circuit_costs(ready))


def _run_trainer(
    settings: TrainSettings,
    ready: Prepared,
    folder: RunFolder,
    progress: Progress,
    timing: Timing,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train what is left; `ready.model` is changed in place."""
    prune(folder.checkpoints)
    checkpoint = last_whole(folder.checkpoints)
    if checkpoint is not None and (name := find_spoiled(checkpoint)):
        raise CheckpointError(
            _damaged(checkpoint, f"{name} is not the file that was saved, its SHA-256 is another one")
        )
    if checkpoint is None and folder.metrics.exists():
        progress.on_note("no checkpoint is complete: starting from the beginning")
    log = MetricsLog(folder.metrics, checkpoint and step_of(checkpoint))
    every = _intervals(settings, ready)
    with StopRequest(partial(progress.on_note, "stopping after this step; Ctrl-C again stops at once")) as stop:
        if ready.circuits is not None:
            ready.circuits.jobs.stop_wanted = lambda: stop.wanted
        trainer = _trainer(settings, ready, folder)
        evaluate = partial(_score, ready)
        trainer.add_callback(timing)
        trainer.add_callback(Logging(log, every.log, progress))
        trainer.add_callback(Scoring(evaluate, every.evaluate, trainer.log, progress))
        trainer.add_callback(Saving(folder.checkpoints, every.save, stop, log))
        for callback in (*(settings.record.ask("callbacks") or ()), *callbacks):
            trainer.add_callback(callback)
        try:
            with outputs.resumable(ready.model):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except BackendError:
            raise
        except Exception as error:
            if checkpoint is not None and not timing.has_begun:
                raise CheckpointError(_damaged(checkpoint, str(error).strip() or type(error).__name__)) from error
            raise
    if (done := trainer.state.global_step) < settings.steps:
        raise KeyboardInterrupt(f"Stopped after step {done} of {settings.steps}. Run the same command again to resume.")


def _intervals(settings: TrainSettings, ready: Prepared) -> Intervals:
    """Those of the settings. On hardware every step is saved, unless `save_every` says otherwise."""
    every = settings.intervals()
    is_hardware = ready.circuits is not None and not ready.circuits.jobs.backend.is_simulator
    return every._replace(save=1) if is_hardware and settings.save_every is None else every


def _steps_done(folder: RunFolder) -> int:
    checkpoint = last_whole(folder.checkpoints)
    return 0 if checkpoint is None else step_of(checkpoint)


def _score(ready: Prepared) -> Score:
    """The score of what would be exported now, with exact circuits, whatever backend they are trained on."""
    with outputs.exact_circuits(ready.model):
        return ready.task.score(ready.model)


def _trainer(settings: TrainSettings, ready: Prepared, folder: RunFolder) -> Trainer:
    arguments = _arguments(settings, folder.checkpoints)
    trainer = Trainer(
        model=ready.model,
        args=arguments,
        train_dataset=ready.task.train,  # type: ignore[arg-type]
        data_collator=ready.task.collate,
        compute_loss_func=ready.task.compute_loss,
        optimizer_cls_and_kwargs=_optimizer(settings, ready.model, arguments),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _optimizer(settings: TrainSettings, model: Any, arguments: TrainingArguments) -> Any:
    """The Trainer's own, or the same with the method's groups of parameters."""
    if not settings.record.uses_param_groups:
        return None
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind, {**options, "params": qpeft.param_groups(model, settings.lr, settings.weight_decay)}


# transformers 5.23 renamed it, and warns of the old name
_RENAMED = hasattr(TrainingArguments, "activation_checkpointing")
_CHECKPOINTING = "activation_checkpointing" if _RENAMED else "gradient_checkpointing"


def _arguments(settings: TrainSettings, checkpoints: Path) -> TrainingArguments:
    checkpointing: dict[str, Any] = {_CHECKPOINTING: settings.gradient_checkpointing}
    try:
        return TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            learning_rate=settings.lr,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            **checkpointing,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",  # the Saving callback says when
            report_to=settings.report_to or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _circuit_costs(ready: Prepared) -> dict[str, Any] | None:
    """What the circuits cost, in all parts of a resumed run."""
    if (run := ready.circuits) is None:
        return None
    jobs = run.jobs
    return {
        "backend": jobs.backend.name,
        "gradient": run.gradient,
        "shots_per_circuit": jobs.shots,
        **jobs.used.to_dict(),
    }


def _damaged(checkpoint: Path, reason: str) -> str:
    return (
        f"{checkpoint} cannot be read: {reason.splitlines()[0]}. Delete the folder and run the same command again: the "
        "run resumes from the checkpoint before it, or starts from the beginning"
    )


def _explain(error: Exception, folder: RunFolder, has_begun: bool) -> None:
    """Raise TrainingError for a full disk, and for bad input that is found after training began."""
    if is_disk_full(error):
        last = last_whole(folder.checkpoints)
        kept = f"the checkpoint of step {step_of(last)} is intact" if last else "no step had been saved"
        raise TrainingError(
            f"the disk that holds {folder.path} is full; {kept}. Free some space and run the same command again"
        ) from error
    if has_begun and isinstance(error, InputError):
        raise TrainingError(f"the run cannot continue: {error}") from error
