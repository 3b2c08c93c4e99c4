"""Whether the circuit matters: a training run repeated with the circuit, and with a control in its place.

The training runs are a study of `qpeft.compare`, with its cells, rows, statistics and verdicts. All members share the
run's base, data, settings, learning rate and seeds; only `feature_source` differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qpeft.compare.analysis.statistics import MIN_SEEDS
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.plan import make_plan
from qpeft.compare.progress import CompareProgress
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Row, read_rows
from qpeft.compare.runner import run
from qpeft.compare.study import Study, described
from qpeft.demo import EMBEDDED, base_path
from qpeft.diagnostics.finding import Measurement
from qpeft.errors import ConfigError
from qpeft.methods import Trains, get, records
from qpeft.training.run_folder import RunFolder
from qpeft.training.settings import TrainSettings
from qpeft.user_files import is_file

FOLDER = "circuit-matters"  # in the run folder: the comparison
_CIRCUIT = "qnn"
_SAME = ("batch_size", "gradient_accumulation_steps", "seq_len", "warmup", "lr_schedule", "weight_decay",
         "max_grad_norm", "label_smoothing", "dtype", "separator", "pad_rows", "text_column", "label_column",
         "prompt_column", "completion_column")  # fmt: skip


@dataclass(frozen=True)
class CircuitMatters(Measurement):
    """Results of the training runs; `folder` holds their rows, tables and report."""

    folder: Path
    summary: Summary = field(repr=False)
    failures: list[Row] = field(default_factory=list, repr=False)

    @property
    def circuit(self) -> MethodSummary:
        """The run's method with its trained circuit."""
        return self.summary[_CIRCUIT]

    @property
    def controls(self) -> list[MethodSummary]:
        """The controls that replace the circuit."""
        return [method for method in self.summary.methods if method.role == "control"]

    @property
    def sentence(self) -> str:
        if not any(control.difference_to_target for control in self.controls):
            return "The training runs are not finished: there is nothing to compare yet."
        if not self.summary.headlines:
            return f"Fewer than {MIN_SEEDS} seeds allow no verdict on the circuit."
        seeds, steps = self.summary.study.seeds, self.summary.study.training.steps
        return f"{self.summary.headlines[0]} ({len(seeds)} seeds, {steps} steps each.)"

    def to_dict(self) -> dict[str, Any]:
        methods = [self.circuit, *self.controls]
        return {
            "report": str(self.folder / "report.html"),
            "metric": self.summary.study.metric,
            "seeds": self.summary.study.seeds,
            "steps": self.summary.study.training.steps,
            "methods": [
                {
                    "key": method.key,
                    "label": method.label,
                    "trainable": method.trainable,
                    "metric": None if method.metric is None else asdict(method.metric),
                    "difference": method.difference_to_target and asdict(method.difference_to_target),
                    "sentence": self.summary.sentences[method.key],
                }
                for method in methods
            ],
        }


def circuit_matters(
    run_folder: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    progress: CompareProgress | None = None,
    trust_remote_code: bool = False,
    ansatz: str | None = None,
) -> CircuitMatters:
    """Repeat the run with every feature source and seed, and compare; call it again to resume.

    Args:
        run_folder: Output of `qpeft train` with the circuit as feature source of a method with controls. Data and base
            are read from the same places as by the run. Results are written to its folder `circuit-matters`. Only
            simulators are used: the exact simulator, with as many shots, replaces your own device.
        seeds: Seeds of the training runs; a verdict needs three.
        steps: Optimizer steps of each training run. None: as many as the run's.
        progress: Receives the progress events of `qpeft compare`.
        trust_remote_code: Execute Python code of the base model.
        ansatz: FILE.py:NAME of the run's ansatz. The file that the run folder names is not executed.

    Raises:
        ConfigError, DataError, CheckpointError: The folder is not such a run, or its data or base cannot be found.
        KeyboardInterrupt: Stopped; finished work is kept.
    """
    folder = Path(run_folder)
    study = study_of(RunFolder(folder).settings(), seeds, steps, ansatz)
    plan = make_plan(study, folder / FOLDER, f"qpeft diagnose {folder} --trainings", trust_remote_code)
    outcome = run(plan, progress=progress)
    return CircuitMatters(folder / FOLDER, outcome.summary, outcome.failures)


def found_before(run_folder: str | Path) -> CircuitMatters | None:
    """Results of earlier training runs in this run folder; None without any."""
    folder = Path(run_folder) / FOLDER
    if not (folder / "study.json").is_file():
        return None
    return CircuitMatters(folder, summarise(read_study(folder), read_rows(folder)))


def study_of(
    settings: TrainSettings, seeds: Sequence[int], steps: int | None = None, ansatz: str | None = None
) -> Study:
    """The study: the run's training with every feature source, at the run's own learning rate.

    Raises ConfigError for a run whose method has no controls of its circuit, and for invalid seeds.
    """
    settings = _with_ansatz(settings, ansatz)
    source = settings.method_settings.get("feature_source", _CIRCUIT)
    if not get(settings.method).controls or source != _CIRCUIT:
        trained = settings.method if source == _CIRCUIT else f"{settings.method} with feature_source {source}"
        suited = " or ".join(record.key for record in records() if record.controls)
        raise ConfigError(
            f"the run trained {trained}; repeating it with controls of the circuit needs method {suited} with "
            f"feature_source {_CIRCUIT}"
        )
    untrained = next(record for record in records() if record.trains is Trains.NOTHING)
    values = {
        "name": FOLDER,
        "title": "Does the circuit matter?",
        "question": "The same training with the circuit, with its angles frozen, and with a free vector, fixed noise "
        "or nothing in its place.",
        "base": EMBEDDED if settings.model == str(base_path()) else settings.model,
        "data": settings.data,
        "eval_data": settings.eval_data,
        "task": settings.task,
        "reference": _CIRCUIT,
        "seeds": list(seeds),
        "tuning": {"grid": [1.0]},
        "training": {name: getattr(settings, name) for name in _SAME} | _length(settings, steps),
        "capacity": False,
        "costs": False,
        "methods": [{"key": "base", "label": "the base as it is", "method": untrained.key}, *_members(settings)],
    }
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"the run cannot be repeated as a study: {described(error)}") from error


def _with_ansatz(settings: TrainSettings, given: str | None) -> TrainSettings:
    """The settings with the ansatz as `given` now: a file that a folder names is not executed."""
    recorded = settings.method_settings.get("ansatz")
    if not is_file(recorded):
        return settings
    name = str(recorded).rpartition(":")[2]
    if given is None or given.rpartition(":")[2] != name:
        raise ConfigError(f"the run trained {name}, an ansatz of your own; give its file with --ansatz FILE.py:{name}")
    return replace(settings, method_settings={**settings.method_settings, "ansatz": given})


def _own_backend(settings: TrainSettings) -> dict[str, Any]:
    """The run's backend, if that was a simulator given by name.

    A user's device is not used again, because its jobs may cost money: the exact simulator samples as many shots.
    """
    given = {name: value for name, value in settings.backend_settings.items() if name != "shot_budget"}
    is_own = is_file(settings.backend.backend)
    return {name: value for name, value in given.items() if not is_own or name in ("shots", "smoothing", "gradient")}


def _members(settings: TrainSettings) -> list[dict[str, Any]]:
    shared = {"method": settings.method, "host": settings.host, "lr": settings.lr}
    backend = _own_backend(settings)
    circuit = {"key": _CIRCUIT, "label": "the trained circuit", "settings": settings.method_settings}
    controls = [
        {
            "key": "no_feature" if source == "none" else source,
            "label": label,
            "settings": {**settings.method_settings, "feature_source": source},
            "role": "control",
            "against": _CIRCUIT,
            "backend": backend if source == "qnn_frozen" else {},
        }
        for source, label in get(settings.method).controls.items()
    ]
    return [{**member, **shared} for member in ({**circuit, "backend": backend}, *controls)]


def _length(settings: TrainSettings, steps: int | None) -> dict[str, Any]:
    """The length of the runs, by default that of the run."""
    if steps is None and settings.epochs is not None:
        return {"epochs": settings.epochs}
    return {"steps": steps or settings.n_steps}
