"""Fine-tune with an unchanged `transformers.Trainer`, in a folder from which a killed run resumes."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

import qpeft
from qpeft.backends import BackendSettings
from qpeft.core.generator_holder import holder_of
from qpeft.errors import CheckpointError, ConfigError, InputError, TrainingError
from qpeft.files import file_hash, write_text
from qpeft.methods.method import imported
from qpeft_lab.base_model import fingerprint, has_files
from qpeft_lab.data.folders import content_hash
from qpeft_lab.data.names import rows_of
from qpeft_lab.data.sources import has_validation_split, spread
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.data.text import is_template_file
from qpeft_lab.files import RUN_AGAIN, is_disk_full, json_line, locked
from qpeft_lab.progress import Progress, counted, stop_request
from qpeft_lab.settings import BY_DATA, RunSettings
from qpeft_lab.training import outputs
from qpeft_lab.training.checkpoints import last_intact, mark_complete, prune, step_of
from qpeft_lab.training.divergence import lower, symptom
from qpeft_lab.training.fused_loss import ONE_LOGIT, Loss, fused_loss
from qpeft_lab.training.inputs import RESULT, check_inputs
from qpeft_lab.training.methods import build_adapter, build_configs, check_memory
from qpeft_lab.training.run_folder import RunFolder, TrainResult
from qpeft_lab.training.score import Score
from qpeft_lab.training.tasks import TASK_CLASSES, CausalLM, Classification, Task
from qpeft_lab.user_files import file_hashes

if TYPE_CHECKING:
    from qpeft.backends.run import CircuitRun

_GRADIENT_EXAMPLES = 64  # fewer lose more than 1 % of the gain (evidence/frame_blocks.py)
_GRADIENT_TOKENS = 128  # in one batch: with more, training would need less memory than its frames


class DivergedError(TrainingError):
    """A loss or a gradient is not finite."""


@dataclass(frozen=True)
class Prepared:
    """The model before training, and the task with its data."""

    settings: RunSettings  # with a number of steps
    model: Any
    task: Task
    circuits: CircuitRun | None = None  # None: the exact simulator


def prepare(settings: RunSettings, progress: Progress, task: Task | None = None) -> Prepared:
    """Load data and base, build the adapter; no file is written. `task`: the data, if it has been
    read already.

    Raises InputError for unusable data, an unusable base or invalid settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a run folder belongs to one process; start it without torchrun or accelerate launch"
        )
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        value = os.environ.get(name, "no")
        # transformers' Trainer follows it, and no record or score would say so
        if value.lower() != "no":
            raise ConfigError(
                f"{name}={value} is set, as by accelerate launch; a run trains and scores in float32"
                " over a base of --dtype, and compiles nothing: unset it"
            )
    config, generator = build_configs(settings)
    check_memory(settings, config, generator)
    if task is None:
        progress.on_stage("Reading the data")
        task = TASK_CLASSES[settings.task](settings, getattr(config, "num_virtual_tokens", 0))
    settings = replace(settings, **{name: getattr(task.settings, name) for name in BY_DATA})
    progress.on_stage("Loading the base model")
    set_seed(settings.seed)
    base = task.load_base()
    if settings.lr is None:
        rate = settings.record.rate_for(settings.task, base.num_parameters())
        settings = replace(settings, lr=rate.value)
        progress.on_note(f"learning rate {rate.value:g}, the default of {rate.source} (--lr)")
    progress.on_stage("Building the adapter")
    model = build_adapter(
        settings,
        base,
        task.head,
        partial(_batches, task, settings.batch_size, progress),
    )
    if (fit_for := imported(settings.record.fit)) and (fit := fit_for(config)):
        progress.on_stage("Computing the gradient's directions")
        fit(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            _batches(task, settings.batch_size, progress),
        )
    circuits = None
    if settings.backend != BackendSettings():
        circuits = qpeft.set_backend(model, **asdict(settings.backend), seed=settings.seed)
        if circuits is not None:
            circuits.forecast(settings.n_steps)  # checks the shot budget
    return Prepared(settings, model, task, circuits)


def train(settings: RunSettings, progress: Progress | None = None) -> TrainResult:
    """Execute the run `settings`, or resume it in `settings.out`; the result of a finished run is
    returned unchanged.

    Data and base are compared by content: they and the folder may be moved, copied or named
    differently. On the same device and thread count, a run that was killed and resumed gives the
    same bits as an uninterrupted one.

    Args:
        settings: The run; its method names what is trained. See `RunSettings`.
        progress: Receives the run's events: stages, steps with their loss, scores.

    Returns:
        The scores before and after training on the evaluation data (losses in nats per token for
        texts), the numbers of trainable and deployed parameters, seconds, bytes, and the folders of
        the adapter and of its export.

    Example::

        result = train(RunSettings(model="embedded", data="text.txt", out="run", steps=100))
        result.before.loss - result.after.loss

    Raises:
        InputError: invalid settings, unusable data, base or folder; no work was done.
        TrainingError: a loss is not finite, the disk is full, or the trained adapter is unusable;
            earlier checkpoints are intact.
        KeyboardInterrupt: stopped by Ctrl-C, after saving the current step.
    """
    progress = progress or Progress()
    settings, folder, identity = _checked(settings)
    if (finished := folder.read_result()) is not None:
        _check_kept(finished)
        return finished
    ready = prepare(settings, progress)
    with _entered(folder, settings, identity, ready):
        if (finished := folder.read_result()) is not None:
            return finished
        result = _fit(settings, folder, identity, ready, progress)
        progress.on_stage("Writing the adapter")
        with _explained(folder):
            outputs.write_adapter(ready.model, folder, settings.method, ready.task)
            stored, exported = map(outputs.weight_bytes, (folder.adapter, folder.exported))
            result = replace(result, stored_bytes=stored, exported_bytes=exported)
            folder.write_result(result)
    return result


def _check_kept(finished: TrainResult) -> None:
    """Raise CheckpointError if the folders of a finished run lack the weights that it wrote."""
    written = {finished.adapter: finished.stored_bytes, finished.exported: finished.exported_bytes}
    for folder, size in written.items():
        if size and outputs.weight_bytes(folder) != size:
            raise CheckpointError(
                f"{finished.out} is finished, but {folder} does not have the weights that it wrote;"
                f" delete {finished.out / RESULT} and {RUN_AGAIN}, which goes on from the last"
                " checkpoint"
            )


def fit(
    settings: RunSettings, progress: Progress, callbacks: Sequence[TrainerCallback], task: Task
) -> tuple[Prepared, TrainResult]:
    """As `train`, resumable in the same way, but with the trained model, on its device; no adapter
    is written.

    The `callbacks` are called after qpeft's own. `task` has the data, read for settings of the same
    model, data and lengths.
    """
    settings, folder, identity = _checked(settings)
    ready = prepare(settings, progress, task)
    with _entered(folder, settings, identity, ready):
        return ready, _fit(settings, folder, identity, ready, progress, callbacks)


@contextmanager
def _entered(
    folder: RunFolder, settings: RunSettings, identity: dict[str, str], ready: Prepared
) -> Iterator[None]:
    """The lock of the folder, which another process can have used since it was checked."""
    with locked(folder.path):
        folder.check(replace(settings, lr=ready.settings.lr), identity)
        yield


class _Checked(NamedTuple):
    """A run that may start or resume."""

    settings: RunSettings
    folder: RunFolder
    # hashes of data, base and files of the user, of those that are local and exist
    identity: dict[str, str]


def _checked(settings: RunSettings) -> _Checked:
    """The run and its folder; without a learning rate it has the one with which it began."""
    check_inputs(settings)
    hashes = file_hashes(settings.method, settings.method_settings, settings.backend_settings)
    for name in ("data", "eval_data"):
        with suppress(OSError, InputError):
            if (source := getattr(settings, name)) and (sha := content_hash(source)):
                hashes[name] = sha
    with suppress(OSError, InputError):
        trained = rows_of(settings.data, hashes.get("data"))
        evaluated = settings.eval_data and rows_of(settings.eval_data, hashes.get("eval_data"))
        has_images = TASKS[settings.task].has_images
        if trained == evaluated and not has_validation_split(settings.data, has_images):
            warnings.warn(
                "the validation data are the training data: the scores describe learned examples;"
                " set eval_data to other data",
                stacklevel=2,
            )
    if has_files(settings.model):
        hashes["model"] = fingerprint(settings.model)
    folder = RunFolder(Path(settings.out).expanduser())
    if settings.lr is None and folder.config.exists():
        settings = replace(settings, lr=folder.recorded()[0].lr)
    if is_template_file(settings.chat_template) and (
        not folder.config.exists() or "chat_template" in folder.recorded()[1]  # as of qpeft 0.3
    ):
        hashes["chat_template"] = file_hash(Path(str(settings.chat_template)).expanduser())
    folder.check(settings, hashes)
    return _Checked(settings, folder, hashes)


def _batches(task: Task, batch_size: int, progress: Progress) -> Iterator[Any]:
    """Batches of examples spread over the training data, all of one size, since each counts as much
    as the others.

    Gradients of all adapted matrices are in memory next to them, so they have few tokens.
    """
    chosen = spread(_GRADIENT_EXAMPLES, list(task.train))
    if isinstance(task, CausalLM):
        batch_size = max(1, min(batch_size, _GRADIENT_TOKENS // task.seq_len))
    size = max(n for n in range(1, batch_size + 1) if len(chosen) % n == 0)
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return map(task.collate, counted(progress, "Gradients of the base", parts))


def _fit(
    settings: RunSettings,
    folder: RunFolder,
    identity: dict[str, str],
    ready: Prepared,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train the remaining steps in the locked folder; `ready.model` is changed in place."""
    task = ready.task
    circuits = ready.circuits
    data_sha256 = task.sha256()
    model = identity.get("model") or fingerprint(settings.model, task.config)
    settings = replace(settings, lr=ready.settings.lr)
    folder.claim(settings, {**identity, "model": model, "examples": data_sha256})
    settings = ready.settings
    seen = settings.n_steps * settings.batch_size * settings.gradient_accumulation_steps
    n = len(task.train)
    often = f"all {n:,}, {seen / n:.2g} times each" if seen > n else f"{seen:,} of {n:,}"
    progress.on_note(
        f"training: {settings.n_steps:,} steps read {_examples_of(task)}: {often};"
        f" held out for evaluation: {len(task.evaluation):,}"
    )
    scored = settings.evaluations(len(task.evaluation))
    which = f"{scored.blocks:,} of them" if scored.blocks < len(task.evaluation) else "all of them"
    progress.on_note(
        f"evaluation: {scored.number} times on {which},"
        f" about {scored.share:.0%} of the time (--eval-every, --eval-blocks)"
    )
    checkpoint = last_intact(folder.checkpoints)
    if circuits is not None:
        folder.jobs.touch()
        circuits.jobs.log_to(folder.jobs)
        circuits.forecast(settings.n_steps - (0 if checkpoint is None else step_of(checkpoint)))
        progress.on_note(f"circuits on {circuits}")
        if settings.save_every is None and not circuits.jobs.backend.is_simulator:
            settings = replace(settings, save_every=1)
    if checkpoint is None and folder.metrics.exists():
        progress.on_note("no checkpoint is complete: starting from the beginning")
    stopping = partial(progress.on_note, "stopping after this step; Ctrl-C again stops at once")
    with (
        _explained(folder),
        stop_request(stopping) as stop,
        outputs.resumable(ready.model),
        _fused(settings, ready) as fused,
    ):
        trainer = _trainer(settings, ready, folder, fused)
        callback = RunCallback(trainer, folder, settings, stop, progress, task)
        of_method = imported(settings.record.callback)
        for added in filter(None, (callback, of_method, *callbacks)):
            trainer.add_callback(added)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if (done := trainer.state.global_step) < settings.n_steps:
        raise KeyboardInterrupt(
            f"Stopped after step {done} of {settings.n_steps}. Run the same command again to"
            " resume."
        )
    rows = trainer.state.log_history
    unit = TASKS[settings.task].unit
    before, *_, after = (Score.from_logs(row, unit) for row in rows if "eval_loss" in row)
    costs = None
    if circuits is not None:  # over all parts of a resumed run
        jobs = circuits.jobs
        run = {"backend": jobs.backend.name, "shots_per_circuit": jobs.shots}
        costs = {**run, **jobs.used}
    return TrainResult(
        out=folder.path,
        model=settings.model,
        method=settings.record.key,
        task=settings.task,
        steps=settings.n_steps,
        before=before,
        after=after,
        trainable=outputs.count_trainable(ready.model),
        trainable_head=outputs.count_trainable(ready.model, task.head),
        deployed=outputs.count_deployed(ready.model),
        seconds=rows[-1]["seconds"],
        seconds_per_step=median(callback.seconds),
        data_sha256=data_sha256,
        circuits=costs,
    )


def _examples_of(task: Task) -> str:
    if isinstance(task, CausalLM):
        return f"blocks of up to {task.seq_len} tokens"
    if isinstance(task, Classification) and not task.kind.is_regression:
        return f"examples of {len(task.labels):,} classes"
    return "examples"


def _fused(settings: RunSettings, ready: Prepared) -> AbstractContextManager[Loss | None]:
    """The loss without logits of a whole batch, if it is worthwhile and possible."""
    if not isinstance(ready.task, CausalLM) or settings.label_smoothing:
        return nullcontext()
    return fused_loss(ready.model, settings.batch_size * ready.task.seq_len)


def _trainer(
    settings: RunSettings, ready: Prepared, folder: RunFolder, fused: Loss | None
) -> Trainer:
    # renamed in transformers 5.23, which warns about the old name
    is_renamed = hasattr(TrainingArguments, "activation_checkpointing")
    name = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {name: settings.gradient_checkpointing}
    constant = settings.lr_schedule == "constant"  # that of transformers has no warmup
    learning_rate = settings.lr
    assert learning_rate is not None  # `prepare` has settled it
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=settings.n_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup" if constant else settings.lr_schedule,
        # the first step of a warmup has the learning rate 0
        warmup_steps=settings.warmup if settings.n_steps > 1 else 0,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or math.inf,  # so that the norm is computed
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
    extra = ONE_LOGIT if fused else {}
    optimizer = None
    if settings.record.needs_param_groups:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, ready.model)
        optimizer = (
            kind,
            {
                **options,
                "params": qpeft.param_groups(ready.model, learning_rate, settings.weight_decay),
            },
        )
    trainer = Trainer(
        model=ready.model,
        args=arguments,
        train_dataset=ready.task.train,  # type: ignore[arg-type]
        data_collator=lambda examples: {**ready.task.collate(examples), **extra},
        compute_loss_func=fused or ready.task.loss(settings.label_smoothing),
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class RunCallback(TrainerCallback):
    """Reports every loss, and logs, scores and saves at the intervals of the run.

    The validation data is scored before the first step and after the last one, too. A checkpoint is
    also saved when a stop is requested, but not at the last step. A loss or gradient that is not
    finite raises DivergedError before the checkpoint of its step. A note names a lower learning
    rate once a loss is above the one at the start. The rows of metrics.jsonl are
    those of the Trainer's `log_history`, which its checkpoints contain, so that a resumed run has
    exactly the rows up to the resumed step.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        settings: RunSettings,
        stop: Event,
        progress: Progress,
        task: Task,
    ):
        self.seconds: list[float] = []  # of each step, forward to optimizer
        self._trainer = trainer
        self._folder = folder
        self._stop = stop
        self._progress = progress
        self._task = task
        self._evaluate_every, self._save_every, self._log_every = settings.intervals()
        self._has_warned = False

    def on_train_begin(self, args, state, control, **_: Any) -> None:
        rows = state.log_history
        write_text(self._folder.metrics, "".join(map(_metrics_line, rows)))
        self._run_began = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)
        use_graphs(self._trainer.model, self._progress)
        self._progress.on_start(state.max_steps, state.global_step)
        if state.global_step == 0:
            self._score(0)

    def on_step_begin(self, args, state, control, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        step = state.global_step
        row = state.log_history.pop()
        names = {
            "loss": "training loss",
            "grad_norm": "gradient's norm",
            "eval_loss": "validation loss",
        }
        for name, what in names.items():
            if not math.isfinite(value := logs.get(name, 0.0)):
                raise DivergedError(
                    f"the {what} is {value} at step {step}. This step was not saved. Start again in"
                    f" another run folder with a lower learning rate than {args.learning_rate:g},"
                    f" such as --lr {lower(args.learning_rate):g}, a longer warmup, or dtype float32"
                    " instead of bfloat16"
                )
        is_last = step == state.max_steps
        is_step = "loss" in logs  # else a score, or the Trainer's summary
        if is_step:
            # reading the loss has waited for the device
            self.seconds.append(time.perf_counter() - self._began)
            self._progress.on_step(step, logs["loss"])
        if "eval_loss" in logs or (is_step and (is_last or step % self._log_every == 0)):
            state.log_history.append(
                {**row, "seconds": round(time.monotonic() - self._run_began, 3)}
            )
            with self._folder.metrics.open("a", encoding="utf-8") as file:
                file.write(_metrics_line(state.log_history[-1]))
        if not self._has_warned and not is_last:
            self._warn_of_divergence(state, args.learning_rate)
        if is_step and (is_last or step % self._evaluate_every == 0):
            self._score(step)

    def _warn_of_divergence(self, state: Any, learning_rate: float) -> None:
        """Say once that the losses so far suggest a lower learning rate."""
        rows = state.log_history
        losses = [row["loss"] for row in rows if "loss" in row]
        scores = [row["eval_loss"] for row in rows if "eval_loss" in row]
        tenth = max(1, state.max_steps // self._log_every // 10)
        if len(losses) % tenth:
            return
        noticed = symptom(losses, scores, tenth)
        if noticed is None:
            return
        self._has_warned = True
        self._progress.on_note(
            f"step {state.global_step}: {noticed}. The learning rate {learning_rate:g} may be too"
            f" high; Ctrl-C stops, and --lr {lower(learning_rate):g} in another folder is worth a"
            " try"
        )

    def on_step_end(self, args, state, control, **_: Any) -> None:
        if state.global_step < state.max_steps:  # after the last step the adapter is saved
            control.should_training_stop |= self._stop.is_set()
            control.should_save = self._stop.is_set() or state.global_step % self._save_every == 0

    def on_save(self, args, state, control, **_: Any) -> None:
        # the folder in which the Trainer has saved it
        mark_complete(self._folder.checkpoints / f"checkpoint-{state.global_step}")

    def _score(self, step: int) -> None:
        holder = holder_of(self._trainer.model)
        with nullcontext() if holder is None else holder.exact():  # as the adapter is exported
            score = self._task.score(self._trainer.model, progress=self._progress)
        # an undefined metric is NaN in the Trainer's logs
        values = score.to_dict().items()
        self._trainer.log(
            {f"eval_{name}": math.nan if value is None else value for name, value in values}
        )
        self._progress.on_eval(step, score)


def _metrics_line(row: dict[str, Any]) -> str:
    """With sorted keys, as in the checkpoints of the Trainer from which a run resumes."""
    return json_line(dict(sorted(row.items())))


def use_graphs(model: Any, progress: Progress) -> None:
    """Evaluate the generators of a model on an NVIDIA GPU as CUDA graphs, where this is possible.

    A note says whether they are, and why not. The results are equal, bit for bit.
    """
    if model.device.type != "cuda":
        return
    for reason in qpeft.capture(model).values():
        if reason is None:
            progress.on_note("the adapter is generated by CUDA graphs")
        else:
            progress.on_note(f"the adapter is generated without CUDA graphs: {reason}")


@contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """Raise TrainingError for a full disk, and for bad input that is found after training began."""
    try:
        yield
    except Exception as error:
        prune(folder.checkpoints)
        if is_disk_full(error):
            raise TrainingError(
                f"the disk that holds {folder.path} is full; the complete checkpoints are intact."
                f" Free some space and {RUN_AGAIN}"
            ) from error
        if isinstance(error, InputError):
            raise TrainingError(f"the run cannot continue: {error}") from error
        raise
