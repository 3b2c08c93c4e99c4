"""Whether the circuit matters: a run's training again, with the circuit, and with something else in its place.

The trainings are a comparison (`studies.comparison`): its cells, rows, resume, statistics and verdicts are used as they
are. All members share the run's base, data, settings, rate and seeds; only `feature_source` differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as _field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qpeft.compare.analysis.found import MethodSummary, Summary
from qpeft.compare.analysis.statistics import MIN_SEEDS
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.plan import make_plan
from qpeft.compare.report.words import capital
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Row, read_rows
from qpeft.compare.running.progress import CompareProgress
from qpeft.compare.running.runner import run
from qpeft.compare.study import UNTRAINED, Study, described
from qpeft.demo import EMBEDDED, base_path
from qpeft.diagnostics.figure import Figure
from qpeft.errors import ConfigError
from qpeft.training.run_folder import RunFolder
from qpeft.training.settings import TrainSettings

FOLDER = "circuit-matters"  # in the run folder: the comparison
_CIRCUIT = "qnn"
_CONTROLS = {"qnn_frozen": "the frozen circuit", "free": "a free vector", "random": "fixed noise", "none": "no feature"}
_SAME = ("steps", "batch_size", "gradient_accumulation_steps", "seq_len", "warmup", "weight_decay", "max_grad_norm",
         "dtype", "text_column", "label_column", "prompt_column", "completion_column")  # fmt: skip


@dataclass(frozen=True)
class CircuitMatters(Figure):
    """What the trainings found; `folder` holds their rows, tables and report."""

    folder: Path
    summary: Summary = _field(repr=False)
    failures: list[Row] = _field(default_factory=list, repr=False)

    @property
    def circuit(self) -> MethodSummary:
        """The run's method with its trained circuit."""
        return self.summary[_CIRCUIT]

    @property
    def controls(self) -> list[MethodSummary]:
        """What stood in the circuit's place."""
        return [method for method in self.summary.methods if method.role == "control"]

    @property
    def sentence(self) -> str:
        if not any(control.difference_to_target for control in self.controls):
            return "The trainings are not finished: there is nothing to compare yet."
        if self.summary.headlines:
            return f"{capital(self.summary.headlines[0])} {self._size}"
        return f"With fewer than {MIN_SEEDS} seeds nothing is said for or against the circuit."

    @property
    def _size(self) -> str:
        seeds, steps = self.summary.study.seeds, self.summary.study.training.steps
        return f"({len(seeds)} seeds, {steps} steps each.)"

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
) -> CircuitMatters:
    """Train what the run trained with every feature source and seed, and compare; called again it goes on.

    Args:
        run_folder: Of `qpeft train` with method qpa and the circuit as its feature source. Data and base are read from
            where the run found them. The trainings go to its folder `circuit-matters`. They run on simulators alone: in
        the place of a device of yours, the exact simulator counts as many shots.
        seeds: Of the trainings; a verdict needs three.
        steps: Of each training. None: as many as the run's.
        progress: Receives what `qpeft compare` shows.

    Raises:
        ConfigError, DataError, CheckpointError: the folder is of no such run, or its data or base cannot be found.
        KeyboardInterrupt: stopped; what is done is kept.
    """
    folder = Path(run_folder)
    study = study_of(RunFolder(folder).settings(), seeds, steps)
    outcome = run(make_plan(study, folder / FOLDER, f"qpeft diagnose {folder} --trainings"), progress=progress)
    return CircuitMatters(folder / FOLDER, outcome.summary, outcome.failures)


def found_before(run_folder: str | Path) -> CircuitMatters | None:
    """What earlier trainings in this run folder found; None without any."""
    folder = Path(run_folder) / FOLDER
    if not (folder / "study.json").is_file():
        return None
    return CircuitMatters(folder, summarise(read_study(folder), read_rows(folder)))


def study_of(settings: TrainSettings, seeds: Sequence[int], steps: int | None = None) -> Study:
    """The comparison: the run's training with every feature source, at the run's own rate.

    Raises ConfigError for a run without a circuit of QPA, and for seeds that cannot be.
    """
    source = settings.method_settings.get("feature_source", _CIRCUIT)
    if settings.method != "qpa" or source != _CIRCUIT:
        trained = settings.method if source == _CIRCUIT else f"{settings.method} with feature_source {source}"
        raise ConfigError(
            f"the run trained {trained}; trainings with something else in the circuit's place are for method qpa with "
            "feature_source qnn"
        )
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
        "training": {name: getattr(settings, name) for name in _SAME} | ({} if steps is None else {"steps": steps}),
        "capacity": False,
        "costs": False,
        "methods": [{"key": "base", "label": "the base as it is", "method": UNTRAINED}, *_members(settings)],
    }
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"the run's training cannot be compared: {described(error)}") from error


def _own_backend(settings: TrainSettings) -> dict[str, Any]:
    """Where the circuit ran, if that was a simulator by name. A device of the user's is not asked again, for its jobs
    may cost: the same shots are counted by the exact simulator. Controls have no circuit to run.
    """
    given = {name: value for name, value in settings.backend_settings.items() if name != "shot_budget"}
    if ".py:" not in settings.backend.backend:
        return given
    return {name: value for name, value in given.items() if name in ("shots", "smoothing", "gradient")}


def _members(settings: TrainSettings) -> list[dict[str, Any]]:
    shared = {"method": "qpa", "host": settings.host, "lr": settings.lr}
    there = _own_backend(settings)
    own = {"key": _CIRCUIT, "label": "the trained circuit", "settings": settings.method_settings, **shared}
    own["backend"] = there
    controls = [
        {
            "key": "no_feature" if source == UNTRAINED else source,
            "label": label,
            "settings": {**settings.method_settings, "feature_source": source},
            "role": "control",
            "against": _CIRCUIT,
            "backend": there if source == "qnn_frozen" else {},
            **shared,
        }
        for source, label in _CONTROLS.items()
    ]
    return [own, *controls]
