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
from qpeft.compare.cell import Cell, Recipe, Steps, failed_row, started_row, work_folder
from qpeft.compare.data import test_references
from qpeft.compare.measurements.capacity import measure_capacity
from qpeft.compare.measurements.convergence import derive
from qpeft.compare.measurements.generation import generate_texts, score_texts
from qpeft.compare.rows import Convergence, Row
from qpeft.compare.study import UNTRAINED, Generation
from qpeft.errors import QpeftError, TrainingError
from qpeft.training import outputs
from qpeft.training.accuracy import ClassificationScore
from qpeft.training.methods import virtual_tokens
from qpeft.training.metrics import HOPELESS_LOSS
from qpeft.training.metrics_log import read_rows
from qpeft.training.prepare import Prepared, prepare
from qpeft.training.progress import Silent
from qpeft.training.run import fit
from qpeft.training.settings import TrainSettings
from qpeft.training.task_types import TASKS
from qpeft.training.tasks import Score, Task, task_class

_CAPACITY_TOKENS = 2048
_NOT_GENERATED = {"params_generator": "nothing is generated"}
_SHARED = ("steps", "batch_size", "gradient_accumulation_steps", "seq_len", "warmup", "weight_decay", "max_grad_norm")
_SHARED += ("dtype", "eval_blocks")


def run_cell(cell: Cell, folder: Path, on_step: Steps = lambda done, planned: None) -> Row:
    """Run the cell, or resume what an earlier process left under `folder`/work, and return its row.

    A run whose loss is not finite, or ends above twice its first value, has status diverged. Every other error is
    raised. The files under work/ can be removed with `tidy` once the row is on the disk.
    """
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
    with _quiet():
        if cell.spec.method == UNTRAINED:
            ready = _measure_base(cell, row)
        else:
            ready = _train(cell, row, work_folder(cell, folder), on_step)
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


def settings_of(cell: Cell, out: Path, data: str = "validation") -> TrainSettings:
    """The run of a cell; `data` is the part that it is scored on."""
    recipe, spec = cell.recipe, cell.spec
    training = recipe.training
    untrained = spec.method == UNTRAINED
    return TrainSettings(
        model=recipe.base.path,
        data=recipe.data.train,
        eval_data=getattr(recipe.data, data),
        out=str(out),
        task=recipe.task,
        method=spec.method,
        host=spec.host,
        method_settings={} if untrained else dict(spec.settings),
        backend_settings=dict(spec.backend),
        lr=cell.lr or 1.0,
        seed=cell.seed,
        eval_every=training.eval_every or max(1, training.steps // 8),
        save_every=training.save_every or _save_every(cell),
        **{name: getattr(training, name) for name in _SHARED},
    )


def _save_every(cell: Cell) -> int | None:
    """A quarter of the steps; with a backend what suits it, which on hardware is every step."""
    return None if cell.spec.backend else max(1, cell.recipe.training.steps // 4)


def shared_task(settings: TrainSettings) -> Task:
    """The data of a cell's run; read once in a process, and not again in those that are forked from it."""
    reserved = virtual_tokens(settings.method, settings.host, settings.method_settings)
    return _task(_Key(settings, reserved))


class _Key:
    """Settings, hashed by what decides the data."""

    def __init__(self, settings: TrainSettings, reserved: int):
        self.settings, self.reserved = settings, reserved
        names = ("model", "data", "eval_data", "task", "seq_len", "eval_blocks", "batch_size", "dtype")
        # a classifier's head is drawn from the run's seed by the task itself
        seed = None if TASKS[settings.task].is_language_model else settings.seed
        self._values = (*(getattr(settings, name) for name in names), reserved, seed)

    def __hash__(self) -> int:
        return hash(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._values == other._values


@lru_cache(maxsize=8)
def _task(key: _Key) -> Task:
    return task_class(key.settings.task)(key.settings, key.reserved)


def warm(cell: Cell) -> None:
    """Read a study's data, for the processes that will be forked from this one."""
    with _quiet():
        shared_task(settings_of(cell, Path()))
        shared_task(_test_settings(cell))


def started(cell: Cell) -> tuple[Any, Task]:
    """The model of a cell before its first step, ready to train, and its data."""
    settings = settings_of(cell, Path())
    with _quiet():
        task = shared_task(settings)
        return _with_exact_circuits(prepare(settings, Silent(), task)).train(), task


def n_test_blocks(cell: Cell) -> int:
    """The number of test examples."""
    with _quiet():
        return len(shared_task(_test_settings(cell)).evaluation)


def _with_exact_circuits(ready: Prepared, row: Row | None = None) -> Any:
    """The model to measure times of: no jobs are sent to hardware for them, and the row says so."""
    if ready.circuits is not None and not ready.circuits.jobs.backend.is_simulator:
        qpeft.set_backend(ready.model)
        if row is not None:
            row.null_reasons["cost.on_backend"] = "times are those of exact circuits: no jobs were sent for them"
    return ready.model


def _test_settings(cell: Cell) -> TrainSettings:
    return replace(settings_of(cell, Path(), "test"), eval_blocks=cell.recipe.test_blocks)


def _record(row: Row, part: str, values: dict[str, Any]) -> None:
    """Set fields of a part of the row; the reasons for its nulls become those of the row, by dotted name."""
    found = {name: value for name, value in values.items() if name != "null_reasons"}
    section = getattr(row, part)
    setattr(row, part, type(section).model_validate(section.to_json() | found))
    row.null_reasons |= {f"{part}.{name}": why for name, why in values.get("null_reasons", {}).items()}


def _train(cell: Cell, row: Row, work: Path, on_step: Steps) -> Prepared:
    settings = settings_of(cell, work / "run")
    best = work / "best.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    task = shared_task(settings)
    facts = RunFacts(task)
    run = fit(settings, _Reporting(on_step), (KeepBest(best), facts), task)
    restore(run.model, best)
    log = read_rows(run.folder.metrics)
    curve, norms = _curve(log), [entry["grad_norm"] for entry in log if "grad_norm" in entry]
    step, loss = best_of(best)
    tokens_per_step = facts.tokens_seen / settings.steps
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
        "bytes_stored": outputs.count_stored_bytes(run.model),
        "optimizer_bytes": facts.optimizer_bytes,
        "null_reasons": _NOT_GENERATED if generator is None else {},
    }
    _record(row, "cost", sizes)
    _record(row, "convergence", derive(curve, norms, tokens_per_step))
    return run.ready


def _score_on_backend(ready: Prepared) -> float:
    """Validation loss with the backend's own probabilities; its job is logged with those of the run.

    Afterwards the model has exact probabilities, as it is exported.
    """
    try:
        return ready.task.score(ready.model).loss
    finally:
        qpeft.set_backend(ready.model)


def _measure_base(cell: Cell, row: Row) -> Prepared:
    settings = settings_of(cell, Path())
    ready = prepare(settings, Silent(), shared_task(settings))
    score = ready.task.score(ready.model)
    row.train.seconds, row.train.curve = 0.0, [[0, None, score.loss, 0.0]]
    _record(row, "quality", {"valid_loss": score.loss, "valid_loss_last": score.loss, "best_step": 0})
    sizes = dict.fromkeys(("params_trainable", "params_head", "params_deployed", "bytes_stored", "optimizer_bytes"), 0)
    _record(row, "cost", {**sizes, "params_generator": None, "null_reasons": _NOT_GENERATED})
    return ready


def _measure(cell: Cell, row: Row, ready: Prepared) -> None:
    """The scores on the test data, read once; and what the adapter does."""
    model, recipe = ready.model.eval(), cell.recipe
    test = shared_task(_test_settings(cell))
    _record(row, "quality", _quality(test.score(model)))
    row.data.splits = _sizes(ready.task, test)
    if recipe.generation and TASKS[recipe.task].is_language_model:
        with _or_reason(row, "quality.bleu"):
            _generate(recipe, recipe.generation, row, model, test)
    _measure_forgetting(cell, row, ready)
    if recipe.capacity and cell.spec.method != UNTRAINED:
        with _or_reason(row, "capacity"):
            base = ready.task.load_base().eval().to(next(model.parameters()).device)
            found = measure_capacity(model, base, _batches(ready.task))
            if cell.seed != recipe.first_seed:  # only one row of a method keeps the values of each module and block
                found = {name: value for name, value in found.items() if name not in ("modules", "blocks")}
            _record(row, "capacity", found)


def _quality(score: Score) -> dict[str, Any]:
    if isinstance(score, ClassificationScore):
        low, high = score.interval
        return {"test_loss": score.loss, "test_accuracy": score.accuracy, "test_accuracy_interval": [low, high]}
    is_shown = score.loss <= HOPELESS_LOSS
    return {
        "test_loss": score.loss,
        "test_ppl": math.exp(score.loss) if is_shown else None,
        "bits_per_byte": score.to_dict()["bits_per_byte"],
        "null_reasons": {} if is_shown else {"test_ppl": "inf-like: the loss is above 20"},
    }


def _sizes(task: Task, test: Task) -> dict[str, int]:
    def targets(examples: Any) -> int:
        return sum(getattr(example, "n_targets", 1) for example in examples)

    parts = {"train": task.train, "valid": task.evaluation, "test": test.evaluation}
    return {f"{name}_tokens": targets(examples) for name, examples in parts.items()}


@contextlib.contextmanager
def _or_reason(row: Row, name: str) -> Iterator[None]:
    """A measurement that fails is null in the row, with the reason; the others are kept."""
    try:
        yield
    except QpeftError as error:
        row.null_reasons[name] = str(error)


def _measure_forgetting(cell: Cell, row: Row, ready: Prepared) -> None:
    """Loss on a general text, each token predicted by those before it: after training minus before."""
    source = cell.recipe.data.general
    row.quality.forgetting_shifted = None
    if source is None:
        row.null_reasons["quality.forgetting_shifted"] = "the study names no general_data"
        return
    settings = replace(settings_of(cell, Path()), data=source, eval_data=source, eval_blocks=cell.recipe.test_blocks)
    general = shared_task(settings)
    before = general.score(general.load_base().eval()).loss
    row.quality.forgetting_shifted = general.score(ready.model).loss - before


def _generate(recipe: Recipe, asked: Generation, row: Row, model: Any, test: Any) -> None:
    """Answers to the test prompts, and their scores."""
    references = list(test_references(Path(recipe.data.test)).items())[: asked.n_prompts]
    if not references:
        reasons = {"bleu": "the data has no prompts with answers"}
        _record(row, "quality", {"bleu": None, "null_reasons": reasons})
        return
    prompts, answers = zip(*references, strict=True)
    texts = generate_texts(model, test.tokenizer, list(prompts), asked.max_new_tokens)
    encoder = Path(asked.bertscore_model) if asked.bertscore_model else None
    _record(row, "quality", {**score_texts(texts, list(answers), encoder), "texts": texts})


def _batches(task: Task) -> list[dict[str, Any]]:
    """Of the validation data, as many as capacity is measured on."""
    batches, seen = [], 0
    for example in task.evaluation:
        batches.append(task.collate([example]))
        seen += int(batches[-1]["input_ids"].numel()) if "input_ids" in batches[-1] else _CAPACITY_TOKENS // 32
        if seen >= _CAPACITY_TOKENS:
            break
    return batches


def _curve(log: list[dict[str, Any]]) -> list[list[Any]]:
    """[step, train_loss, valid_loss, seconds], a line for each step that has either."""
    found: dict[int, list[Any]] = {}
    for entry in log:
        line = found.setdefault(entry["step"], [entry["step"], None, None, entry["seconds"]])
        line[1] = entry.get("loss", line[1])
        line[2] = entry.get("eval_loss", line[2])
    return [found[step] for step in sorted(found)]


class _Reporting(Silent):
    """Reports steps only."""

    def __init__(self, on_step: Steps):
        self._on_step, self._planned = on_step, 0

    def on_start(self, total: int, done: int) -> None:
        self._planned = total
        self._on_step(done, total)

    def on_step(self, step: int, loss: float) -> None:
        self._on_step(step, self._planned)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that libraries repeat in every cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _cost_row(cell: Cell) -> Row:
    """Time and memory of a method, measured while nothing else of the study runs."""
    from qpeft.compare.measurements.cost import measure_cost

    row = started_row(cell)
    settings = settings_of(cell, Path())
    assert cell.recipe.reference is not None
    reference = cell.spec.model_copy(update={**dict(cell.recipe.reference), "backend": {}})
    like = settings_of(cell.model_copy(update={"spec": reference}), Path())
    with _quiet():
        task = shared_task(settings)
        size = settings.batch_size
        batches = [task.collate(task.train[start : start + size]) for start in range(0, 8 * size, size)]
        found = measure_cost(
            make_model=lambda: _with_exact_circuits(prepare(settings, Silent(), task), row),
            make_reference=lambda: _with_exact_circuits(prepare(like, Silent(), task)),
            make_base=task.load_base,
            batches=batches,
            settings=settings,
        )
    _record(row, "cost", found)
    row.status = "success"
    return row
