"""From a cell to its row: train in a run folder, restore the parameters with the lowest validation loss, measure."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import qpeft
from qpeft.compare.callbacks import KeepBest, RunFacts, best_of, restore
from qpeft.compare.cell import Cell, Steps, failed_row, started_row, work_folder
from qpeft.compare.data import TEXT_PAIR, test_references
from qpeft.compare.measurements.capacity import measure_capacity
from qpeft.compare.measurements.convergence import derive
from qpeft.compare.rows import Convergence, Row
from qpeft.compare.study import Generation
from qpeft.errors import DataWarning, QpeftError, TrainingError
from qpeft.methods.registry import find_by_config
from qpeft.metrics.texts import score_texts
from qpeft.training import outputs
from qpeft.training.generation import generate_texts
from qpeft.training.methods import virtual_tokens
from qpeft.training.metrics import HOPELESS_LOSS, ClassificationScore, RegressionScore
from qpeft.training.metrics_log import read_rows
from qpeft.training.prepare import Prepared, prepare
from qpeft.training.progress import Progress
from qpeft.training.run import fit
from qpeft.training.settings import TrainSettings
from qpeft.training.task_types import TASKS
from qpeft.training.tasks import Score, Task, task_class

_CAPACITY_TOKENS = 2048
_NOT_GENERATED = {"params_generator": "nothing is generated"}
_OF_TRAINING = ("steps", "batch_size", "gradient_accumulation_steps", "seq_len", "warmup", "weight_decay")
_OF_TRAINING += ("max_grad_norm", "dtype", "eval_blocks", "separator", "pad_rows", "lr_schedule", "label_smoothing")
_OF_DATA = ("trust_remote_code", "model", "data", "eval_data", "task", "seq_len", "eval_blocks", "batch_size", "dtype")
_OF_DATA += ("separator", "pad_rows", "text_pair_column")


def run_cell(cell: Cell, folder: Path, on_step: Steps = lambda done, planned: None) -> Row:
    """Run the cell, or resume its run under `folder`/work, and return its row.

    The row has status diverged if the loss is not finite, or ends above twice its first value. Other errors are raised.
    """
    with no_warnings():
        if cell.role == "cost":
            return _cost_row(cell)
        try:
            return _quality_row(cell, folder, on_step)
        except TrainingError as error:
            if "is nan at step" not in str(error) and "is inf at step" not in str(error):
                raise
            return _diverged_row(cell, folder, error)


def _quality_row(cell: Cell, folder: Path, on_step: Steps) -> Row:
    row = started_row(cell)
    ready = _train(cell, row, work_folder(cell, folder), on_step) if cell.spec.is_trained else _score_base(cell, row)
    if cell.role != "tuning":
        _measure(cell, row, ready)
    row.status = "diverged" if row.convergence.diverged else "success"
    return row


def _diverged_row(cell: Cell, folder: Path, error: TrainingError) -> Row:
    """The row of a run whose loss or gradient is not finite, with its curve up to there."""
    row = failed_row(cell, error).updated(
        status="diverged", traceback_tail=None, convergence=Convergence(diverged=True)
    )
    log = read_rows(work_folder(cell, folder) / "run" / "metrics.jsonl")
    row.train.curve, row.train.seconds = _curve(log), log[-1]["seconds"] if log else 0.0
    return row


def _cost_row(cell: Cell) -> Row:
    """Time and memory of a method, measured while nothing else of the study runs."""
    from qpeft.compare.measurements.cost import measure_cost

    row = started_row(cell)
    settings = settings_of(cell, Path())
    assert cell.setup.reference is not None
    like = {name: getattr(cell.setup.reference, name) for name in ("method", "host", "settings")}
    reference = cell.model_copy(update={"spec": cell.spec.model_copy(update={**like, "backend": {}})})
    task = shared_task(settings)
    size = settings.batch_size
    found = measure_cost(
        make_model=lambda: _exact_model(prepare(settings, Progress(), task), row),
        make_reference=lambda: prepare(settings_of(reference, Path()), Progress(), task).model,
        make_base=task.load_base,
        batches=[task.collate(task.train[start : start + size]) for start in range(0, 8 * size, size)],
        settings=settings,
    )
    _record(row, "cost", found)
    row.status = "success"
    return row


def settings_of(cell: Cell, out: Path, part: str = "validation") -> TrainSettings:
    """The training run of a cell, scored on `part` of the data."""
    setup, spec = cell.setup, cell.spec
    training = setup.training
    # with a backend the run chooses: on hardware it saves every step
    save_every = None if spec.backend else max(1, training.steps // 4)
    return TrainSettings(
        model=setup.model,
        data=str(setup.data.train),
        eval_data=str(getattr(setup.data, part)),
        out=str(out),
        task=setup.task,
        text_pair_column=training.text_pair_column and TEXT_PAIR,
        method=spec.method,
        host=spec.host,
        method_settings=dict(spec.settings),
        backend_settings=dict(spec.backend),
        lr=cell.lr or 1.0,
        seed=cell.seed,
        trust_remote_code=setup.trust_remote_code,
        eval_every=training.eval_every or max(1, training.steps // 20),
        save_every=training.save_every or save_every,
        **{name: getattr(training, name) for name in _OF_TRAINING},
    )


def shared_task(settings: TrainSettings) -> Task:
    """The data of a cell's run, read once by a process and the processes forked from it."""
    return _read(settings)[0]


def _read(settings: TrainSettings) -> tuple[Task, list[str]]:
    """The data, and the warnings of rows that are left out."""
    asked = {name: getattr(settings, name) for name in _OF_DATA}
    if not TASKS[settings.task].is_language_model:
        asked["seed"] = settings.seed  # a new classification head is drawn from it
    return _read_task(virtual_tokens(settings.method, settings.host, settings.method_settings), **asked)


@lru_cache(maxsize=8)
def _read_task(reserved: int, **asked: Any) -> tuple[Task, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        task = task_class(asked["task"])(TrainSettings(out="", **asked), reserved)
    return task, [str(found.message) for found in caught if isinstance(found.message, DataWarning)]


def read_test_data(cell: Cell) -> Task:
    """The test data of a cell."""
    return shared_task(_test_settings(cell))


def _test_settings(cell: Cell) -> TrainSettings:
    return replace(settings_of(cell, Path(), "test"), eval_blocks=cell.setup.test_blocks)


def warm(cell: Cell) -> None:
    """Read a study's data, for the processes that will be forked from this one."""
    with no_warnings():
        shared_task(settings_of(cell, Path()))
        read_test_data(cell)


def untrained_model(cell: Cell) -> tuple[Any, Task]:
    """The model of a cell before its first step, with exact circuits, and its data."""
    settings = settings_of(cell, Path())
    task = shared_task(settings)
    return _exact_model(prepare(settings, Progress(), task)), task


def _exact_model(ready: Prepared, row: Row | None = None) -> Any:
    """The model for measurements of time: no jobs are sent to hardware for them."""
    if ready.circuits is not None and not ready.circuits.jobs.backend.is_simulator:
        qpeft.set_backend(ready.model)
        if row is not None:
            row.null_reasons["cost.on_backend"] = "times are those of exact circuits: no jobs were sent for them"
    return ready.model


def _train(cell: Cell, row: Row, work: Path, on_step: Steps) -> Prepared:
    settings = settings_of(cell, work / "run")
    best = work / "best.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    task = shared_task(settings)
    facts = RunFacts(task)
    run = fit(settings, _StepProgress(on_step), (KeepBest(best), facts), task)
    restore(run.model, best)
    log = read_rows(run.folder.metrics)
    curve, norms = _curve(log), [entry["grad_norm"] for entry in log if "grad_norm" in entry]
    step, loss = best_of(best)
    tokens_per_step = facts.tokens_seen / settings.n_steps
    row.data.order_sha256, row.data.tokens_seen = facts.order_sha256, facts.tokens_seen
    row.data.tokens_per_step = tokens_per_step
    row.train.seconds, row.train.curve = run.seconds, curve
    _record(row, "quality", {"valid_loss": loss, "valid_loss_last": run.after.loss, "best_step": step})
    if run.circuits is not None:
        row.train.circuits = run.circuits
        with _or_reason(row, "quality.valid_loss_on_backend"):
            row.quality.valid_loss_on_backend = _score_on_backend(run.ready)
    generator = outputs.count_generator(run.model)
    sizes = {
        "params_trainable": outputs.count_trainable(run.model),
        "params_head": outputs.count_trainable(run.model, task.head),
        "params_deployed": outputs.count_deployed(run.model),
        "params_generator": generator,
        "bytes_stored": _stored_bytes(run.model, work),
        "optimizer_bytes": facts.optimizer_bytes,
        "null_reasons": _NOT_GENERATED if generator is None else {},
    }
    _record(row, "cost", sizes)
    _record(row, "convergence", derive(curve, norms, tokens_per_step))
    return run.ready


def _stored_bytes(model: Any, work: Path) -> int:
    """Size of the weights file. An adapter that leaves out its frames refers to a frame file in `work` from now on."""
    config = getattr(model, "active_peft_config", None)
    record = None if config is None else find_by_config(config)
    if record is not None and record.leaves_out_frames(vars(config)):
        (file := work / "frames.safetensors").unlink(missing_ok=True)  # of a run that was killed
        record.ask("save_frames", model, file)
    return outputs.count_stored_bytes(model)


def _score_on_backend(ready: Prepared) -> float:
    """Validation loss with the backend's probabilities. Afterwards the model has exact ones, as it is exported."""
    try:
        return ready.task.score(ready.model).loss
    finally:
        qpeft.set_backend(ready.model)


def _score_base(cell: Cell, row: Row) -> Prepared:
    settings = settings_of(cell, Path())
    ready = prepare(settings, Progress(), shared_task(settings))
    loss = ready.task.score(ready.model).loss
    row.train.seconds, row.train.curve = 0.0, [[0, None, loss, 0.0]]
    _record(row, "quality", {"valid_loss": loss, "valid_loss_last": loss, "best_step": 0})
    sizes = dict.fromkeys(("params_trainable", "params_head", "params_deployed", "bytes_stored", "optimizer_bytes"), 0)
    _record(row, "cost", {**sizes, "params_generator": None, "null_reasons": _NOT_GENERATED})
    return ready


def _measure(cell: Cell, row: Row, ready: Prepared) -> None:
    """The scores on the test data, forgetting, and the capacity of the adapter."""
    model, setup = ready.model.eval(), cell.setup
    test = read_test_data(cell)
    score = test.score(model)
    _record(row, "quality", _quality(score))
    parts = {"train": ready.task.train, "valid": ready.task.evaluation, "test": test.evaluation}
    row.data.splits = {f"{name}_tokens": _count_targets(examples) for name, examples in parts.items()}
    if unknown := getattr(score, "n_unknown", 0):
        row.data.splits["test_unknown_tokens"] = unknown
    if left_out := [text for used in (settings_of(cell, Path()), _test_settings(cell)) for text in _read(used)[1]]:
        row.data.left_out = list(dict.fromkeys(left_out))
    if setup.generation and TASKS[setup.task].is_language_model:
        with _or_reason(row, "quality.bleu"):
            _generate(setup.data.test, setup.generation, row, model, test)
    has_capacity = setup.capacity and cell.spec.is_trained
    base: Any = None
    if has_capacity or setup.data.general:
        base = ready.task.load_base().eval().to(next(model.parameters()).device)
    _measure_forgetting(cell, row, model, base)
    if has_capacity:
        with _or_reason(row, "capacity"):
            found = measure_capacity(model, base, _batches(ready.task))
            if cell.seed != setup.first_seed:  # only one row of a method keeps the values of each module and block
                found = {name: value for name, value in found.items() if name not in ("modules", "blocks")}
            _record(row, "capacity", found)


def _quality(score: Score) -> dict[str, Any]:
    if isinstance(score, ClassificationScore):
        low, high = score.interval
        classes = {"test_mcc": score.mcc, "test_f1": score.f1, "test_accuracy_interval": [low, high]}
        return {"test_loss": score.loss, "test_accuracy": score.accuracy, **classes}
    if isinstance(score, RegressionScore):
        found = {"test_pearson": score.pearson, "test_spearman": score.spearman}
        undefined = {name: "equal predictions, or equal labels" for name in found if found[name] is None}
        return {"test_loss": score.loss, **found, "null_reasons": undefined}
    is_shown = score.loss <= HOPELESS_LOSS
    return {
        "test_loss": score.loss,
        "test_ppl": math.exp(score.loss) if is_shown else None,
        "bits_per_byte": score.to_dict()["bits_per_byte"],
        "null_reasons": {} if is_shown else {"test_ppl": "inf-like: the loss is above 20"},
    }


def _count_targets(examples: Any) -> int:
    """Scored tokens; an example of a class counts as one."""
    return sum(getattr(example, "n_targets", 1) for example in examples)


def _generate(test_file: Path, asked: Generation, row: Row, model: Any, test: Any) -> None:
    """Answers to the test prompts, and their scores."""
    references = list(test_references(test_file).items())[: asked.n_prompts or None]
    if not references:
        reasons = {"bleu": "the data has no prompts with answers"}
        _record(row, "quality", {"bleu": None, "null_reasons": reasons})
        return
    prompts, answers = zip(*references, strict=True)
    texts = generate_texts(model, test.tokenizer, list(prompts), asked.decoding)
    encoder = Path(asked.bertscore_model) if asked.bertscore_model else None
    _record(row, "quality", {**score_texts(texts, list(answers), encoder, asked.meteor), "texts": texts})


def _measure_forgetting(cell: Cell, row: Row, model: Any, base: Any) -> None:
    """Loss on a general text after training minus before."""
    row.quality.forgetting_shifted = None
    if cell.setup.data.general is None:
        row.null_reasons["quality.forgetting_shifted"] = "the study names no general_data"
        return
    settings = replace(settings_of(cell, Path(), "general"), eval_blocks=cell.setup.test_blocks)
    general = shared_task(replace(settings, data=str(settings.eval_data)))
    row.quality.forgetting_shifted = general.score(model).loss - general.score(base).loss


def _batches(task: Task) -> list[dict[str, Any]]:
    """As many batches of the validation data as capacity is measured on."""
    batches, seen = [], 0
    for example in task.evaluation:
        batches.append(task.collate([example]))
        seen += int(batches[-1]["input_ids"].numel()) if "input_ids" in batches[-1] else _CAPACITY_TOKENS // 32
        if seen >= _CAPACITY_TOKENS:
            break
    return batches


def _record(row: Row, part: str, values: dict[str, Any]) -> None:
    """Set fields of a part of the row; the reasons for its nulls become those of the row, by dotted name."""
    found = {name: value for name, value in values.items() if name != "null_reasons"}
    section = getattr(row, part)
    setattr(row, part, type(section).model_validate(section.to_json() | found))
    row.null_reasons |= {f"{part}.{name}": why for name, why in values.get("null_reasons", {}).items()}


@contextlib.contextmanager
def _or_reason(row: Row, name: str) -> Iterator[None]:
    """If the measurement fails, its value is null in the row, with the reason; other measurements are kept."""
    try:
        yield
    except QpeftError as error:
        row.null_reasons[name] = str(error)


def _curve(log: list[dict[str, Any]]) -> list[list[Any]]:
    """[step, training loss, validation loss, seconds] for each step that has a loss.

    The training loss has six decimals, the precision of float32, which keeps the files of large studies small.
    """
    found: dict[int, list[Any]] = {}
    for entry in log:
        line = found.setdefault(entry["step"], [entry["step"], None, None, entry["seconds"]])
        if "loss" in entry:
            line[1] = round(entry["loss"], 6)
        line[2] = entry.get("eval_loss", line[2])
    return [found[step] for step in sorted(found)]


class _StepProgress(Progress):
    def __init__(self, on_step: Steps):
        self._on_step, self._planned = on_step, 0

    def on_start(self, total: int, done: int) -> None:
        self._planned = total
        self._on_step(done, total)

    def on_step(self, step: int, loss: float) -> None:
        self._on_step(step, self._planned)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Without the warnings that libraries repeat in every cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
