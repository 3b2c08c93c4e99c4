"""The run folder: what is in it, whom it belongs to, whether it is finished.

run/  config.json     settings, hashes of data and base, versions
      metrics.jsonl   losses and scores, a line each
      jobs.jsonl      what was sent to a backend, a line for each job
      checkpoints/    the Trainer's own; what a resume starts from
      adapter/        compact: for qpa and quantum_peft the generator alone
      exported/       what loads without qpeft
      README.md       model card
      result.json     written last: the run is finished
"""

from __future__ import annotations

import json
import platform
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import read_json, remove_unfinished, write_json
from qpeft.training.lock import usable
from qpeft.training.settings import TrainSettings

_FORMAT = 1
_PACKAGES = ("qpeft", "torch", "transformers", "peft", "accelerate", "datasets")
_FREE_TO_CHANGE = ("out", "report_to")  # no number of the result depends on them


class RunFolder:
    """Paths of one run, and the guard of its config.json."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.jobs = path / "jobs.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.exported = path / "exported"
        self.card = path / "README.md"
        self.result = path / "result.json"

    def settings(self) -> TrainSettings:
        """What the run was asked for. Raises CheckpointError if its config.json is missing or damaged."""
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} has no {self.config.name}: it is not the run folder of a training")
        known = {f.name for f in fields(TrainSettings)}
        recorded = self._recorded()["settings"]
        try:
            return TrainSettings(**{name: value for name, value in recorded.items() if name in known})
        except TypeError as error:
            raise CheckpointError(self._damaged(str(error))) from error

    def check(self, settings: TrainSettings) -> None:
        """Refuse a folder that is not a run's, or is another run's. Raises ConfigError or CheckpointError."""
        with usable(self.path):
            is_there, is_folder = self.path.exists(), self.path.is_dir()
        if is_there and not is_folder:
            raise ConfigError(f"{self.path} is a file; name a folder for the run")
        if self.config.exists():
            self._check_same("settings", _compared(_as_json(settings)))
        elif is_folder and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and not a run folder; name another folder")

    def claim(self, settings: TrainSettings, identity: dict[str, Any]) -> None:
        """Record whose folder this is, and remove what a kill left half-written.

        Raises CheckpointError if the recorded run has another `identity` (data, base).
        """
        remove_unfinished(self.path)
        if self.config.exists():
            self._check_same("identity", identity)
            return
        record = {
            "format": _FORMAT,
            "settings": _as_json(settings),
            "identity": identity,
            "environment": _environment(),
        }
        write_json(self.config, record)

    def _check_same(self, part: str, wanted: dict[str, Any]) -> None:
        recorded = self._recorded()[part]
        if part == "settings":
            recorded = _compared({**_usual_settings(), "backend_settings": {}, **recorded})  # an earlier one had fewer
        changed = [
            f"{name} was {recorded.get(name)!r}, now {wanted.get(name)!r}"
            for name in sorted({*recorded, *wanted} - {*_FREE_TO_CHANGE})
            if recorded.get(name) != wanted.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{self.path} holds a run with other {part}: {'; '.join(changed)}. Go on with the recorded ones, "
                "or name another folder"
            )

    def _recorded(self) -> dict[str, Any]:
        try:
            record = read_json(self.config)
            found = record["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(self._damaged(str(error))) from error
        if found != _FORMAT:
            raise CheckpointError(
                f"{self.config} has format {found}, this qpeft reads {_FORMAT}; name another folder, or use the "
                "qpeft that began the run"
            )
        for part in ("settings", "identity"):
            if not isinstance(record.get(part), dict):
                raise CheckpointError(self._damaged(f"it has no {part}"))
        return record

    def _damaged(self, how: str) -> str:
        return f"{self.config} is damaged ({how}); name another folder for the run"


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the limit on shots, which decides how far a run gets and not where to."""
    backend = {name: value for name, value in settings["backend_settings"].items() if name != "shot_budget"}
    return {**settings, "backend_settings": backend}


def _as_json(settings: TrainSettings) -> dict[str, Any]:
    """Settings as they come back from JSON: tuples as lists, sets in order."""
    return json.loads(json.dumps(asdict(settings), default=sorted))


def _usual_settings() -> dict[str, Any]:
    """What settings are where nobody chose, by name; those that must be chosen are left out."""
    return {f.name: f.default for f in fields(TrainSettings) if f.default is not MISSING}


def _environment() -> dict[str, Any]:
    import torch

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
