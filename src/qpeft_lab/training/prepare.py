"""Loads and checks everything that a run needs, before a file is written."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

import qpeft
from qpeft.backends import BackendSettings
from qpeft.checks import unknown
from qpeft.errors import ConfigError, InputError
from qpeft.methods.method import imported
from qpeft_lab import base_model as base
from qpeft_lab.data.sources import content_hash
from qpeft_lab.data.split import spread
from qpeft_lab.progress import Progress
from qpeft_lab.settings import RunSettings
from qpeft_lab.training.methods import build_adapter, build_configs
from qpeft_lab.training.tasks import Task, task_class
from qpeft_lab.user_files import file_hashes

if TYPE_CHECKING:
    from qpeft.backends.run import CircuitRun

_GRADIENT_EXAMPLES = 64  # more hardly change the leading directions


@dataclass(frozen=True)
class Prepared:
    """The model before training, and the task with its data."""

    settings: RunSettings  # with a number of steps
    model: Any
    task: Task
    circuits: CircuitRun | None = None  # None: the exact simulator


def prepare(settings: RunSettings, progress: Progress, task: Task | None = None) -> Prepared:
    """Load data and base, build the adapter; no file is written. `task`: the data, if it has been read already.

    Raises InputError for unusable data, an unusable base or invalid settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run folder belongs to one process; start it without torchrun or accelerate launch")
    for name in settings.report_to:
        if name not in (known := get_available_reporting_integrations()):
            raise ConfigError(f"{unknown('place to report to', name, known)}; perhaps its package is not installed")
    config, _ = build_configs(settings)
    if task is None:
        progress.on_stage("Reading the data")
        task = task_class(settings.task)(settings, getattr(config, "num_virtual_tokens", 0))
    settings = settings.with_steps(len(task.train))
    progress.on_stage("Loading the base model")
    set_seed(settings.seed)
    model = build_adapter(settings, task.load_base(), task.head, partial(_batches, task, settings.batch_size))
    if (fit_for := imported(settings.record.fit)) and (fit := fit_for(config)):
        progress.on_stage("Computing the gradient's directions")
        fit(model.to("cuda" if torch.cuda.is_available() else "cpu"), _batches(task, settings.batch_size))
    circuits = None
    if settings.backend != BackendSettings():
        circuits = qpeft.set_backend(model, **asdict(settings.backend), seed=settings.seed)
        if circuits is not None:
            circuits.forecast(settings.n_steps)  # checks the shot budget
    return Prepared(settings, model, task, circuits)


def _batches(task: Task, batch_size: int) -> list[Any]:
    """Batches of examples spread over the training data."""
    chosen = spread(_GRADIENT_EXAMPLES, list(task.train))
    return [task.collate(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]


def identity_of(settings: RunSettings) -> dict[str, str]:
    """Hashes of the local files of a run: its data, its base, and files of the user. Missing sources are left out."""
    found = dict(file_hashes(settings.method, settings.method_settings, settings.backend_settings))
    for name in ("data", "eval_data"):
        with suppress(OSError, InputError):
            if (source := getattr(settings, name)) and (sha := content_hash(source)):
                found[name] = sha
    if (Path(settings.model).expanduser() / "config.json").is_file():
        found["model"] = base.fingerprint(settings.model)
    return found
