"""Loads and checks everything that a run needs, before a file is written."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

import qpeft
from qpeft.core import base_model as base
from qpeft.errors import ConfigError
from qpeft.training.blocks import spread
from qpeft.training.methods import build_adapter, build_config
from qpeft.training.progress import Progress
from qpeft.training.run_folder import own_files
from qpeft.training.settings import TrainSettings
from qpeft.training.source_names import parse_source
from qpeft.training.sources import content_hash
from qpeft.training.task_types import TASKS
from qpeft.training.tasks import Task, task_class

if TYPE_CHECKING:
    from qpeft.backends.run import CircuitRun


_GRADIENT_EXAMPLES = 64  # more hardly change the leading directions


@dataclass(frozen=True)
class Prepared:
    """The model before training, the task with its data, and the hashes that a resumed run must have."""

    model: Any
    task: Task
    identity: dict[str, Any]
    circuits: CircuitRun | None = None  # None: the exact simulator


def prepare(settings: TrainSettings, progress: Progress, task: Task | None = None) -> Prepared:
    """Load data and base, build the adapter; no file is written. `task`: the data, if it has been read already.

    Raises InputError for unusable data, an unusable base or invalid settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run folder belongs to one process; start it without torchrun or accelerate launch")
    _check_reporters(settings.report_to)
    config = _config(settings)
    if task is None:
        progress.on_stage("Reading the data")
        task = _read(settings, config)
    settings = settings.with_steps(len(task.train))
    if advice := settings.record.ask("advice", settings, config):
        warnings.warn(advice, stacklevel=2)
    progress.on_stage("Loading the base model")
    identity = identity_of(settings, task)
    set_seed(settings.seed)
    loaded = task.load_base()
    model = build_adapter(settings, loaded, task.head, partial(_batches, task, settings.batch_size))
    if fit := settings.record.ask("fit", config):
        progress.on_stage("Computing the gradient's directions")
        fit(model.to("cuda" if torch.cuda.is_available() else "cpu"), _batches(task, settings.batch_size))
    return Prepared(model, task, identity, _set_backend(settings, model))


def identity_of(settings: TrainSettings, task: Task | None = None) -> dict[str, Any]:
    """Hashes of the data, the base and the user's files. `task`: the data, if it has been read already.

    Raises InputError for unusable data or an unusable base.
    """
    task = task or _read(settings, _config(settings))
    identity = {"data": task.sha256(), "base": base.fingerprint(settings.model, task.config)}
    identity["tokenizer"] = base.tokenizer_fingerprint(settings.model, task.config)
    return {**identity, **own_files(settings), **_data_files(settings)}


def local_identity(settings: TrainSettings) -> dict[str, Any]:
    """The part of `identity_of` that hashes of local files give, without a network; none of files that are missing."""
    found = _data_files(settings)
    if (Path(settings.model).expanduser() / "config.json").is_file():
        found["base"] = base.fingerprint(settings.model)
        found["tokenizer"] = base.tokenizer_fingerprint(settings.model)
    return found


def _data_files(settings: TrainSettings) -> dict[str, str]:
    """Hashes of the local files of the data that exist."""
    sources = {"data_files": settings.data, "eval_data_files": settings.eval_data}
    pattern = "*/*" if TASKS[settings.task].has_images else "*"  # of the files in a folder that are read
    found: dict[str, str] = {}
    for part, name in sources.items():
        with suppress(OSError):  # a file that is not data, or is being replaced
            if name and Path(parse_source(name).name).expanduser().exists() and (sha := content_hash(name, pattern)):
                found[part] = sha
    return found


def _config(settings: TrainSettings) -> Any:
    return None if settings.record.config is None else build_config(settings)


def _read(settings: TrainSettings, config: Any) -> Task:
    return task_class(settings.task)(settings, getattr(config, "num_virtual_tokens", 0))


def _batches(task: Task, batch_size: int) -> list[Any]:
    """Batches of examples spread over the training data."""
    chosen = spread(_GRADIENT_EXAMPLES, list(task.train))
    return [task.collate(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]


def _set_backend(settings: TrainSettings, model: Any) -> CircuitRun | None:
    if settings.backend.is_usual:
        return None
    circuits = qpeft.set_backend(model, **asdict(settings.backend), seed=settings.seed)
    if circuits is not None:
        circuits.check_budget(settings.n_steps)
    return circuits


def _check_reporters(names: list[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"cannot report to {name!r}: it is unknown, or its package is not installed; available: "
                f"{', '.join(known) or 'none'}"
            )
