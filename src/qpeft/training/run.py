"""Fine-tune with an unchanged `transformers.Trainer`, in a folder from which a killed run resumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import qpeft
from qpeft.core.checkpoint import CONFIG
from qpeft.errors import RUN_AGAIN, BackendError, CheckpointError, ConfigError, InputError, TrainingError, setting
from qpeft.files import is_disk_full, open_own, read_json
from qpeft.training import outputs
from qpeft.training.callbacks import RunCallback
from qpeft.training.checkpoints import find_damaged, last_complete, prune, step_of
from qpeft.training.interrupt import StopRequest
from qpeft.training.lock import locked
from qpeft.training.methods import seed_value
from qpeft.training.metrics_log import MetricsLog, read_scores, read_seconds
from qpeft.training.prepare import Prepared, identity_of, local_identity, prepare
from qpeft.training.progress import Progress
from qpeft.training.result import TrainResult, read_result, write_result
from qpeft.training.run_folder import RunFolder
from qpeft.training.settings import TrainSettings
from qpeft.training.tasks import Score, Task


@dataclass(frozen=True)
class FittedRun:
    """A trained model with its scores, in a run folder without an adapter."""

    settings: TrainSettings
    folder: RunFolder
    ready: Prepared  # the model is the trained one, on the device it was trained on
    before: Score
    after: Score
    seconds: float  # from the first score to the last, including saving, without interruptions
    seconds_per_step: float | None  # median since the last resume, forward to optimizer
    circuits: dict[str, Any] | None  # their costs; None on the exact simulator

    @property
    def model(self) -> Any:
        return self.ready.model


def train(
    settings: TrainSettings,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    task: Task | None = None,
) -> TrainResult:
    """Execute the run `settings`, or resume it in `settings.out`; the result of a finished run is returned unchanged.

    Data and base are compared by content: they and the folder may be moved, copied or named differently.
    On the same device and thread count, a run that was killed and resumed gives the same bits as an uninterrupted one.

    Args:
        settings: The run.
        progress: Receives the run's events.
        callbacks: Trainer callbacks, called after qpeft's own.
        task: The data, if it has been read already for settings of the same model, data and lengths.

    Raises:
        InputError: invalid settings, unusable data, base or folder; no work was done.
        TrainingError: a loss is not finite, the disk is full, or the trained adapter is unusable; earlier checkpoints
            are intact.
        KeyboardInterrupt: stopped by Ctrl-C, after saving the current step.
    """
    progress = progress or Progress()
    folder = _checked_folder(settings)
    if (finished := read_result(folder.result)) is not None:
        if folder.config.exists():
            _compare_sources(settings, folder, progress, task)
        return finished
    with locked(folder.path):
        return publish(_fit(settings, folder, progress, callbacks, task), progress)


def fit(
    settings: TrainSettings,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    task: Task | None = None,
) -> FittedRun:
    """As `train`, resumable in the same way, but the model is returned and nothing is exported."""
    folder = _checked_folder(settings)
    with locked(folder.path):
        return _fit(settings, folder, progress or Progress(), callbacks, task)


def publish(run: FittedRun, progress: Progress) -> TrainResult:
    """Write the compact and the exported adapter, the model card, and result.json, which marks the run as finished."""
    progress.on_stage("Writing the adapter")
    folder, ready = run.folder, run.ready
    try:
        result = TrainResult(
            out=folder.path,
            model=run.settings.model,
            method=run.settings.record.key,
            steps=run.settings.n_steps,
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
    for name in ("model", "data", "out"):
        if not getattr(settings, name):  # a shell variable that is not set; as a path it is the current folder
            raise ConfigError(f"{setting(name)} is empty; give a value")
    folder = RunFolder(Path(settings.out).expanduser())
    folder.check(settings)
    return folder


def _compare_sources(settings: TrainSettings, folder: RunFolder, progress: Progress, task: Task | None) -> None:
    """Raise CheckpointError if data or base are not those of the finished run; only local files that are left count."""
    if folder.names_sources_of(settings):
        found = local_identity(settings)
        if folder.has_files(found):
            for name in folder.missing_sources(found):
                progress.on_note(f"{name} is missing; it was not compared with that of the run")
            return
    progress.on_stage("Comparing data and base with those of the run")
    folder.check_identity(settings, identity_of(settings, task))


def _fit(
    settings: TrainSettings,
    folder: RunFolder,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
    task: Task | None,
) -> FittedRun:
    ready = prepare(_as_begun(settings, folder), progress, task)
    folder.claim(settings, ready.identity)
    if settings.epochs is not None:
        epochs, settings = settings.epochs, settings.with_steps(len(ready.task.train))
        progress.on_note(f"epochs: {epochs:g} of {len(ready.task.train):,} examples, {settings.n_steps:,} steps")
    if ready.circuits is not None:
        os.close(open_own(folder.jobs))  # no link to another file
        ready.circuits.jobs.log_to(folder.jobs)
        ready.circuits.jobs.on_failure = progress.on_note
        ready.circuits.check_budget(settings.n_steps - _steps_done(folder))
        progress.on_note(f"circuits on {ready.circuits}")
    stop = StopRequest(partial(progress.on_note, "stopping after this step; Ctrl-C again stops at once"))
    every = settings.intervals()
    if ready.circuits is not None and not ready.circuits.jobs.backend.is_simulator and settings.save_every is None:
        every = every._replace(save=1)
    callback = RunCallback(folder.checkpoints, every, stop, progress)
    try:
        _run_trainer(settings, ready, folder, callback, stop, progress, callbacks)
        scores = read_scores(folder.metrics, ready.task.score_class)
    except Exception as error:
        prune(folder.checkpoints)
        _explain(error, folder, callback.has_begun)
        raise
    times = read_seconds(folder.metrics), callback.seconds_per_step
    return FittedRun(settings, folder, ready, scores[0], scores[-1], *times, _circuit_costs(ready))


def _run_trainer(
    settings: TrainSettings,
    ready: Prepared,
    folder: RunFolder,
    callback: RunCallback,
    stop: StopRequest,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train the remaining steps; `ready.model` is changed in place."""
    prune(folder.checkpoints)
    checkpoint = last_complete(folder.checkpoints)
    if checkpoint is not None and (reason := find_damaged(checkpoint)):
        raise CheckpointError(_damaged(checkpoint, reason))
    if checkpoint is None and folder.metrics.exists():
        progress.on_note("no checkpoint is complete: starting from the beginning")
    log = MetricsLog(folder.metrics, checkpoint and step_of(checkpoint))
    with stop:
        if ready.circuits is not None:
            ready.circuits.jobs.stop_wanted = lambda: stop.wanted
        trainer = _trainer(settings, ready, folder)
        callback.attach(trainer, log, partial(_score, ready))
        for other in (*(settings.record.ask("callbacks") or ()), *callbacks):
            trainer.add_callback(other)
        try:
            with outputs.resumable(ready.model):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except BackendError:
            raise
        except Exception as error:
            if checkpoint is not None and not callback.has_begun:
                raise CheckpointError(_damaged(checkpoint, str(error).strip() or type(error).__name__)) from error
            raise
    if (done := trainer.state.global_step) < settings.n_steps:
        raise KeyboardInterrupt(
            f"Stopped after step {done} of {settings.n_steps}. Run the same command again to resume."
        )


def _as_begun(settings: TrainSettings, folder: RunFolder) -> TrainSettings:
    """The settings with the seed of random projections that the last checkpoint has.

    A run of an earlier version has PEFT's default there instead of the seed of the run.
    """
    checkpoint = last_complete(folder.checkpoints)
    names = {} if settings.record.config is None else seed_value(settings)
    if checkpoint is None or not names or find_damaged(checkpoint):  # the latter is reported before training
        return settings
    saved = read_json(checkpoint / CONFIG)
    config = saved["host"] if settings.attaches else saved
    begun = {name: config[name] for name in names if name in config}
    return replace(settings, method_settings={**begun, **settings.method_settings})


def _steps_done(folder: RunFolder) -> int:
    checkpoint = last_complete(folder.checkpoints)
    return 0 if checkpoint is None else step_of(checkpoint)


def _score(ready: Prepared) -> Score:
    """The score with exact circuits, as the adapter is exported."""
    with outputs.exact_circuits(ready.model):
        return ready.task.score(ready.model)


def _trainer(settings: TrainSettings, ready: Prepared, folder: RunFolder) -> Trainer:
    arguments, optimizer = _arguments(settings, folder.checkpoints), None
    if settings.record.uses_param_groups:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, ready.model)
        optimizer = kind, {**options, "params": qpeft.param_groups(ready.model, settings.lr, settings.weight_decay)}
    trainer = Trainer(
        model=ready.model,
        args=arguments,
        train_dataset=ready.task.train,  # type: ignore[arg-type]
        data_collator=ready.task.collate,
        compute_loss_func=ready.task.loss(settings.label_smoothing),
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


_WITH_WARMUP = {"constant": "constant_with_warmup"}  # transformers' names of schedules; its "constant" has none

# renamed in transformers 5.23, which warns about the old name
_RENAMED = hasattr(TrainingArguments, "activation_checkpointing")
_CHECKPOINTING = "activation_checkpointing" if _RENAMED else "gradient_checkpointing"


def _arguments(settings: TrainSettings, checkpoints: Path) -> TrainingArguments:
    checkpointing: dict[str, Any] = {_CHECKPOINTING: settings.gradient_checkpointing}
    try:
        return TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=settings.n_steps,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            learning_rate=settings.lr,
            lr_scheduler_type=_WITH_WARMUP.get(settings.lr_schedule, settings.lr_schedule),
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            **checkpointing,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",  # RunCallback decides
            report_to=settings.report_to or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _circuit_costs(ready: Prepared) -> dict[str, Any] | None:
    """Costs of the circuits, over all parts of a resumed run."""
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
        f"{checkpoint} cannot be read: {reason.splitlines()[0]}. Delete the folder and {RUN_AGAIN}: the "
        "run resumes from the checkpoint before it, or starts from the beginning"
    )


def _explain(error: Exception, folder: RunFolder, has_begun: bool) -> None:
    """Raise TrainingError for a full disk, and for bad input that is found after training began."""
    if is_disk_full(error):
        last = last_complete(folder.checkpoints)
        kept = f"the checkpoint of step {step_of(last)} is intact" if last else "no step had been saved"
        raise TrainingError(
            f"the disk that holds {folder.path} is full; {kept}. Free some space and {RUN_AGAIN}"
        ) from error
    if has_begun and isinstance(error, InputError):
        raise TrainingError(f"the run cannot continue: {error}") from error
