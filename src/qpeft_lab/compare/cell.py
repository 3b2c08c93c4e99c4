"""A cell, one method with one seed and one learning rate, and how it becomes a row.

A cell trains in a run folder, restores the parameters with the lowest validation loss, and measures
them.
"""

from __future__ import annotations

import json
import math
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

import qpeft
from qpeft import methods
from qpeft.core.generator_holder import holder_of
from qpeft.errors import ConfigError, DataWarning
from qpeft.files import replace_file
from qpeft.methods import Trains
from qpeft.methods.method import imported
from qpeft_lab.base_model import fingerprint
from qpeft_lab.compare.cell_progress import ProgressFile
from qpeft_lab.compare.measure import measure_cost, rank_fields
from qpeft_lab.compare.rows import Row
from qpeft_lab.compare.study import Generation, PlannedMethod
from qpeft_lab.data.text import answered_prompts
from qpeft_lab.demo import base_model
from qpeft_lab.diagnose.adapters import angle_moves
from qpeft_lab.files import RUN_AGAIN
from qpeft_lab.method_records import UNTRAINED
from qpeft_lab.metrics.texts import score_texts
from qpeft_lab.progress import Progress
from qpeft_lab.settings import RunSettings, settings_from
from qpeft_lab.training import outputs
from qpeft_lab.training.fit import DivergedError, Prepared, fit, prepare
from qpeft_lab.training.generate import generate_texts
from qpeft_lab.training.methods import virtual_tokens
from qpeft_lab.training.run_folder import environment, read_rows
from qpeft_lab.training.tasks import TASK_CLASSES, CausalLM, Task
from qpeft_lab.user_files import circuit_hashes, file_hashes

RunCell = Callable[["Cell", Path], Row]

_RETRY = "run the command again with --retry failed"  # a failed cell is not run again otherwise
_DIVERGED = 2.0  # times the first validation loss
_READ: dict[str, tuple[Task, list[str]]] = {}


@dataclass(frozen=True)
class Setup:
    """What all cells of a study share."""

    # without method, seed and folder; its data are the training and validation part
    run: RunSettings
    test: Path
    test_blocks: int
    generation: Generation | None
    reference: PlannedMethod  # the method that times are compared with
    base_sha256: str  # of the plan
    hidden_states: Path | None = None  # kept for all cells that train the upper layers alone


@dataclass(frozen=True)
class Cell:
    """A method with a seed and a learning rate: everything that a process needs to run it in the
    study's folder.
    """

    study: str
    spec: PlannedMethod
    role: str  # that of the method, or tuning, or cost
    name: str  # of the row: seed0, lr0.001, cost
    seed: int
    lr: float | None
    setup: Setup

    @property
    def method(self) -> str:
        """The study's key of the method."""
        return self.spec.key

    @property
    def cell_id(self) -> str:
        return f"{self.study}/{self.spec.key}/{self.spec.hash}/{self.name}"


def work_folder(cell: Cell, folder: Path) -> Path:
    """The folder of the cell's run, until the cell has its row."""
    # a cell with another learning rate must not resume this run
    rate = "" if cell.lr is None else f"-lr{cell.lr:g}"
    return folder / "work" / cell.method / cell.spec.hash / f"{cell.name}{rate}"


def started_row(cell: Cell) -> Row:
    """The row of a cell before it runs."""
    spec = cell.spec
    return {
        "study": cell.study,
        "method": cell.method,
        "hash": spec.hash,
        "name": cell.name,
        "role": cell.role,
        "seed": cell.seed,
        "lr": cell.lr,
        "status": "failed",
        "adapter": spec.method,
        "settings": spec.settings,
        **environment(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def failed_row(cell: Cell, error: BaseException) -> Row:
    """The row of a cell that raised."""
    tail = "".join(traceback.format_exception(error))[-2000:]
    kind = type(error).__name__
    message = str(error).replace(RUN_AGAIN, _RETRY) or kind
    return started_row(cell) | {"error": message, "error_type": kind, "traceback": tail}


def run_cell(cell: Cell, folder: Path) -> Row:
    """Run the cell, or resume its run under `folder`/work, and return its row.

    The row has status diverged if a loss is not finite, or ends above twice its first value.
    Other errors are raised, such as ConfigError for a user's file that changed since the plan.
    """
    _refuse_changed_base(cell.setup)
    _refuse_changed_files(cell.spec)
    row = started_row(cell)
    with warnings.catch_warnings(action="ignore"):  # libraries repeat them in every cell
        if cell.role == "cost":
            return row | _cost(cell) | {"status": "success"}
        work = work_folder(cell, folder)
        work.mkdir(parents=True, exist_ok=True)
        progress = ProgressFile(work)
        try:
            if cell.spec.rates:
                ready, measured = _train(cell, work, progress)
            else:
                ready, measured = _untrained(cell, progress)
        except DivergedError as error:
            log = read_rows(work / "run" / "metrics.jsonl")
            return row | {"status": "diverged", "error": str(error), "curve": _curve(log)}
        if cell.role != "tuning":
            measured |= _measured(cell, ready, progress)
    losses = [loss for _, loss, _ in measured["curve"]]
    test_loss = measured.get("test_loss", 0.0)
    is_finite = all(map(math.isfinite, (*losses, test_loss)))
    is_lost = not is_finite or losses[-1] > _DIVERGED * losses[0]
    return row | measured | {"status": "diverged" if is_lost else "success"}


def _refuse_changed_base(setup: Setup) -> None:
    """Raise ConfigError if the base is a folder or file with another content than at the plan; of a
    hub's the plan has the commit.
    """
    model = base_model(setup.run.model)
    if Path(model).expanduser().exists() and fingerprint(model) != setup.base_sha256:
        raise ConfigError(
            f"the base model {model} changed since the study was planned; restore it, or give"
            " another --out"
        )


def _refuse_changed_files(spec: PlannedMethod) -> None:
    """Raise ConfigError if the files of the method are not those that its hash covers."""
    files = file_hashes(spec.method, spec.settings, spec.backend) | circuit_hashes(spec.settings)
    if changed := [part for part in files if files[part] != spec.files.get(part)]:
        named = {"method": spec.method, **spec.settings, **spec.backend}
        named["gates"] = f"the circuit {named.get('ansatz')}"
        raise ConfigError(
            f"method {spec.key}: {named[changed[0]]} changed since the study was planned;"
            f" {RUN_AGAIN}"
        )


def settings_of(cell: Cell, out: Path = Path()) -> RunSettings:
    """The training run of a cell."""
    spec = cell.spec
    run = cell.setup.run
    # with a backend the run chooses: on hardware it saves every step
    save_every = run.save_every or (None if spec.backend else max(1, run.n_steps // 4))
    return replace(
        run,
        out=str(out),
        method=spec.method,
        host=spec.host,
        method_settings=dict(spec.settings),
        backend_settings=dict(spec.backend),
        lr=cell.lr or 1.0,
        seed=cell.seed,
        eval_every=run.eval_every or max(1, run.n_steps // 20),
        save_every=save_every,
    )


def read_data(settings: RunSettings) -> Task:
    """The data of a cell's run, or its test data."""
    return _read(settings)[0]


def settings_of_data(cell: Cell) -> list[RunSettings]:
    """Those whose data the cell reads: of its run, and with the test data."""
    return [settings_of(cell), test_settings_of(cell)]


def data_as_json(cell: Cell) -> str:
    """`settings_of_data`, for `read_ahead` in another process."""
    return json.dumps([asdict(settings) for settings in settings_of_data(cell)])


def read_ahead(text: str) -> None:
    """Read the data of `data_as_json` now, for all processes that are forked from this one."""
    for values in json.loads(text):
        read_data(settings_from(RunSettings, values))


def untrained_model(cell: Cell) -> Any:
    """The model of a cell before its first step, with exact circuits: no jobs are sent for times."""
    settings = settings_of(cell)
    ready = prepare(settings, Progress(), read_data(settings))
    if ready.circuits is not None and not ready.circuits.jobs.backend.is_simulator:
        qpeft.set_backend(ready.model)
    return ready.model


class KeepBest(TrainerCallback):
    """Saves the trainable parameters at each new minimum of the validation loss, which checkpoints
    contain.
    """

    def __init__(self, path: Path):
        self._path = path

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("eval_loss")
        lowest = state.best_metric
        if loss is None or (lowest is not None and loss >= lowest):
            return
        state.best_metric = loss
        parameters = {
            name: p.detach().cpu().contiguous() for name, p in _trainable(kwargs["model"]).items()
        }
        with replace_file(self._path) as temporary:
            save_file(parameters, temporary)


def _train(cell: Cell, work: Path, progress: Progress) -> tuple[Prepared, Row]:
    settings = settings_of(cell, work / "run")
    best = work / "best.safetensors"
    ready, run = fit(settings, progress, [KeepBest(best)], _task(cell, settings))
    model = ready.model
    best_parameters = load_file(best)
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(best_parameters[name])
    curve = _curve(read_rows(work / "run" / "metrics.jsonl"))
    step, loss, _ = min(curve, key=lambda point: point[1])
    holder = holder_of(model)
    measured = {
        "seconds": run.seconds,
        "curve": curve,
        "valid_loss": loss,
        "best_step": step,
        "params_trainable": outputs.count_trainable(model),
        "params_head": outputs.count_trainable(model, ready.task.head),
        "params_deployed": outputs.count_deployed(model),
        "params_generator": None if holder is None else outputs.count_trainable(holder),
        "bytes_stored": _stored_bytes(cell, model, work),
    }
    generators = () if holder is None or cell.spec.kind != "quantum" else holder.values()
    moves = [move for generator in generators for move in angle_moves(generator)]
    if moves:
        moved = torch.cat([move.detach().flatten().abs() for move in moves])
        measured |= {"angles_moved": moved.mean().item(), "angles_moved_most": moved.max().item()}
    if run.circuits is not None:
        measured["circuits"] = run.circuits
        qpeft.set_backend(model)  # exact, as it is exported
    return ready, measured


def _task(cell: Cell, settings: RunSettings) -> Task:
    """The data of the cell's run; its base takes part in what the cells of the study share."""
    task = read_data(settings)
    if isinstance(task, CausalLM):
        task.hidden_states = cell.setup.hidden_states
    return task


def _untrained(cell: Cell, progress: Progress) -> tuple[Prepared, Row]:
    settings = settings_of(cell)
    ready = prepare(settings, progress, _task(cell, settings))
    ready.model.requires_grad_(False)
    loss = ready.task.score(ready.model, progress=progress).loss
    sizes = dict.fromkeys(("params_trainable", "params_head", "params_deployed", "bytes_stored"), 0)
    return ready, {"curve": [[0, loss, 0.0]], "valid_loss": loss, "best_step": 0, **sizes}


def _measured(cell: Cell, ready: Prepared, progress: Progress) -> Row:
    """The scores on the test data, and the ranks of the learned updates."""
    model = ready.model.eval()
    setup = cell.setup
    test = read_data(test_settings_of(cell))
    score = test.score(model, progress=progress)
    measured: Row = {"test_loss": score.loss, "test_scored": score.n_scored}
    if score.block_losses:
        measured["test_losses"] = [round(loss, 3) for loss in score.block_losses]
    names = {
        "perplexity": "test_ppl",
        "padded_perplexity": "test_ppl",
        "bits_per_byte": "bits_per_byte",
    }
    measured |= {names.get(name, f"test_{name}"): value for name, value in score.metrics.items()}
    progress.on_stage("Measuring the adapter")
    if methods.get(cell.spec.method).trains is Trains.ADAPTER:
        measured |= rank_fields(model)
    if setup.generation and setup.run.is_language_model:
        measured |= _generated(setup.test, setup.generation, model, test)
    left_out = measured.pop("left_out", [])
    left_out += [text for used in settings_of_data(cell) for text in _read(used)[1]]
    return measured | {"left_out": list(dict.fromkeys(left_out))}


def _cost(cell: Cell) -> Row:
    """Time and memory of a method, measured while nothing else of the study runs."""
    settings = settings_of(cell)
    task = read_data(settings)
    size = settings.batch_size
    reference = replace(cell, spec=cell.setup.reference.model_copy(update={"backend": {}}))
    cost = measure_cost(
        make_model=lambda: untrained_model(cell),
        make_reference=lambda: untrained_model(reference),
        batches=[
            task.collate(task.train[start : start + size])
            for start in range(0, min(8 * size, len(task.train)), size)
        ],
    )
    return {**cost, "reference": reference.spec.hash}


def _generated(test_file: Path, asked: Generation, model: Any, test: Any) -> Row:
    """Answers to the test prompts, and their scores."""
    rows = [json.loads(line) for line in test_file.read_bytes().splitlines()]
    known = answered_prompts(rows, test.tokenizer)
    references = list(known.answers.items())[: asked.n_prompts or None]
    if not references:
        return {}
    prompts, answers = zip(*references, strict=True)
    texts = generate_texts(
        model, test.tokenizer, list(prompts), asked, have_template=known.have_template
    )
    encoder = Path(asked.bertscore_model) if asked.bertscore_model else None
    scores = score_texts(texts, list(answers), encoder)
    return {**scores, "texts": texts, "left_out": known.left_out}


def _read(settings: RunSettings) -> tuple[Task, list[str]]:
    """The data, and the warnings of rows that are left out; read once by a process and those forked
    from it.
    """
    reserved = virtual_tokens(settings)
    # a new classification head is drawn from it
    seed = 0 if settings.is_language_model else settings.seed
    plain: dict[str, Any] = {
        "method_settings": {},
        "backend_settings": {},
        "lr": 1.0,
        "seed": seed,
        "save_every": None,
    }
    run = replace(settings, method=UNTRAINED, host=RunSettings.host, out="", **plain)
    if (key := repr((reserved, run))) not in _READ:
        with warnings.catch_warnings(record=True, action="always", category=DataWarning) as caught:
            task = TASK_CLASSES[run.task](run, reserved)
        left_out = [
            str(warning.message) for warning in caught if isinstance(warning.message, DataWarning)
        ]
        _READ[key] = task, left_out
    return _READ[key]


def test_settings_of(cell: Cell) -> RunSettings:
    """The same with the test data for evaluation."""
    return replace(
        settings_of(cell), eval_data=str(cell.setup.test), eval_blocks=cell.setup.test_blocks
    )


def _stored_bytes(cell: Cell, model: Any, work: Path) -> int:
    """Size of the weights file. An adapter in gradient frames refers to a frame file in `work` from
    now on.
    """
    record = methods.get(cell.spec.method)
    if record.save_fit is not None and imported(record.fit)(model.active_peft_config) is not None:
        file = work / "frames.safetensors"
        file.unlink(missing_ok=True)  # of a run that was killed
        imported(record.save_fit)(model, file)
    return outputs.count_stored_bytes(model)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; shared parameters once."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def _curve(log: list[dict[str, Any]]) -> list[list[Any]]:
    """[step, validation loss, seconds] of each evaluation."""
    return [
        [entry["step"], entry["eval_loss"], entry["seconds"]]
        for entry in log
        if entry.get("eval_loss") is not None
    ]
