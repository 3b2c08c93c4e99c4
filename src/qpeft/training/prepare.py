"""Everything a run needs, loaded and checked before anything is written."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transformers import set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

import qpeft
from qpeft import methods
from qpeft.errors import ConfigError
from qpeft.training import base_model as base
from qpeft.training.calibration import fit_to_gradient
from qpeft.training.methods import build_adapter, build_config
from qpeft.training.progress import Progress
from qpeft.training.settings import TrainSettings
from qpeft.training.tasks import Task, task_class

if TYPE_CHECKING:
    from qpeft.backends.run import CircuitRun


@dataclass(frozen=True)
class Prepared:
    """A model at its start, the task with its data, and what a resumed run must find unchanged."""

    model: Any
    task: Task
    identity: dict[str, Any]
    circuits: CircuitRun | None = None  # what runs them in the place of the exact simulator


def prepare(settings: TrainSettings, progress: Progress, task: Task | None = None) -> Prepared:
    """Load data and base, build the adapter. Raises InputError for whatever is not usable; writes nothing.

    `task` is the data where it has been read already.
    """
    _check_single_process()
    _check_reporters(settings.report_to)
    config = None if settings.record.config is None else build_config(settings)
    _warn(settings, config)
    if task is None:
        progress.on_stage("Reading the data")
        task = task_class(settings.task)(settings, getattr(config, "num_virtual_tokens", 0))
    progress.on_stage("Loading the base model")
    identity = {"data": task.sha256(), "base": base.fingerprint(settings.model, task.config)}
    if sha := methods.file_sha256(settings.method):
        identity["method"] = sha
    set_seed(settings.seed)
    loaded = task.load_base()
    model = build_adapter(settings, loaded, task.head)
    fit_to_gradient(model, task, settings.batch_size, progress)
    return Prepared(model, task, identity, _set_backend(settings, model))


def _warn(settings: TrainSettings, config: Any) -> None:
    if advice := settings.record.ask("advice", settings, config):
        warnings.warn(advice, stacklevel=2)


def _set_backend(settings: TrainSettings, model: Any) -> CircuitRun | None:
    """Raises ConfigError for what the backend cannot do, or a budget that the steps would exceed."""
    chosen = settings.backend
    if chosen.is_usual:
        return None
    circuits = qpeft.set_backend(model, **asdict(chosen), seed=settings.seed)
    if circuits is not None:
        circuits.check_budget(settings.steps)
    return circuits


def _check_single_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run folder belongs to one process; start it without torchrun or accelerate launch")


def _check_reporters(names: list[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"cannot report to {name!r}: it is unknown, or its package is not installed; here are "
                f"{', '.join(known) or 'none'}"
            )
