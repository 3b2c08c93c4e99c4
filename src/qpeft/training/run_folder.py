"""The files of a run folder, and the check that a folder belongs to the run.

run/  config.json     settings, hashes of data and base, versions
      metrics.jsonl   losses and scores, one line each
      jobs.jsonl      jobs sent to a backend, one line each
      checkpoints/    the Trainer's checkpoints
      adapter/        compact checkpoint: of a generated adapter the generator alone
      exported/       adapter that loads without qpeft
      README.md       model card
      result.json     written last: the run is finished
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from qpeft.checks import check_fields
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import output_folder, read_json, remove_unfinished, write_json
from qpeft.training.settings import TrainSettings
from qpeft.user_files import file_hashes, without_folder, without_folders

_FORMAT = 1
_PACKAGES = ("qpeft", "torch", "transformers", "peft", "accelerate", "datasets")
_NOT_STORED = "trust_remote_code"  # each call decides: a folder of others must not grant it
_FREE_TO_CHANGE = ("out", "report_to", _NOT_STORED)  # the result does not depend on them
_SOURCES = ("model", "data", "eval_data")  # compared by content, which the identity hashes, not by name
_HASHED_SOURCES = {"data": "data", "base": "model", "tokenizer": "model"}  # part of the identity: its field
_LOCAL_SOURCES = {"data_files": "data", "eval_data_files": "eval_data", "base": "model"}
_HASHED_FILES = {
    **{"method": "method", "ansatz": "method_settings", "frames": "method_settings"},
    "backend": "backend_settings",
}


class RunFolder:
    """Paths of one run, and checks of its config.json."""

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
        """The settings in config.json. Raises CheckpointError if it is missing or damaged."""
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} has no {self.config.name}: it is not a run folder")
        known = {f.name for f in fields(TrainSettings)} - {_NOT_STORED}
        recorded = self._recorded()["settings"]
        try:
            found = TrainSettings(**{name: value for name, value in recorded.items() if name in known})
            check_fields(found, skip=("method", "host"))
        except (TypeError, ConfigError) as error:
            raise CheckpointError(self._damaged(str(error))) from error
        return found

    def check(self, settings: TrainSettings) -> None:
        """Raise ConfigError unless the folder is new, empty or a run's; CheckpointError if its settings differ.

        Data and base are not read: `check_identity` compares them.
        """
        if not os.path.lexists(self.result):  # a finished run is only read
            output_folder(self.path)
        if self.config.exists():
            self._check_settings(_compared(_as_json(settings)))
            self._check_hashes(settings, own_files(settings), _HASHED_FILES)
        elif self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and not a run folder; choose another folder")

    def names_sources_of(self, settings: TrainSettings) -> bool:
        """Whether the recorded names of data and base are those of `settings`."""
        recorded = self._recorded()["settings"]
        return all(recorded.get(name) == getattr(settings, name) for name in _SOURCES)

    def has_files(self, found: dict[str, Any]) -> bool:
        """Whether the recorded hashes are those `found`, as far as qpeft 0.1 recorded them."""
        recorded = self._recorded()["identity"]
        return all(recorded.get(part, sha) == sha for part, sha in found.items())

    def missing_sources(self, found: dict[str, Any]) -> list[str]:
        """The names of local sources that the run had and whose hashes are not in `found`."""
        record = self._recorded()
        had = [
            part for part in _LOCAL_SOURCES if not str(record["identity"].get(part, "commit:")).startswith("commit:")
        ]
        return [record["settings"][_LOCAL_SOURCES[part]] for part in had if part not in found]

    def check_identity(self, settings: TrainSettings, identity: dict[str, Any]) -> None:
        """Raise CheckpointError if the recorded `identity` (hashes of data, base and the user's files) differs."""
        self._check_hashes(settings, identity, {**_HASHED_SOURCES, **_HASHED_FILES})

    def claim(self, settings: TrainSettings, identity: dict[str, Any]) -> None:
        """Write config.json if there is none, and remove unfinished files of a killed process.

        Raises CheckpointError if the recorded `identity` (hashes of data, base and the user's files) differs.
        """
        remove_unfinished(self.path)
        if self.config.exists():
            self.check_identity(settings, identity)
            if not self.names_sources_of(settings):  # they were moved
                record = self._recorded()
                record["settings"] |= {name: getattr(settings, name) for name in _SOURCES}
                write_json(self.config, record)
            return
        record = {
            "format": _FORMAT,
            "settings": _as_json(settings),
            "identity": identity,
            "environment": _environment(),
        }
        write_json(self.config, record)

    def _check_settings(self, wanted: dict[str, Any]) -> None:
        defaults = {f.name: f.default for f in fields(TrainSettings) if f.default is not MISSING}
        try:  # an earlier version had fewer
            recorded = _compared({**defaults, "backend_settings": {}, **self._recorded()["settings"]})
        except (TypeError, AttributeError) as error:
            raise CheckpointError(self._damaged(str(error))) from error
        changed = [
            difference
            for name in sorted({*recorded, *wanted} - {*_FREE_TO_CHANGE, *_SOURCES})
            for difference in _differences(name, recorded.get(name), wanted.get(name))
        ]
        if changed:
            self._refuse("settings", changed)

    def _check_hashes(self, settings: TrainSettings, hashes: dict[str, Any], parts: dict[str, str]) -> None:
        """Compare the recorded hashes of `parts`: parts of the identity with their fields of the settings."""
        record = self._recorded()
        not_in_0_1 = {part: hashes.get(part) for part in ("tokenizer", "backend")}
        recorded = {**not_in_0_1, **record["identity"]}
        changed = [
            f"{part} was {_short(was)} ({_named(record['settings'].get(name), part)}), "
            f"now {_short(now)} ({_named(getattr(settings, name), part)})"
            for part, name in parts.items()
            if (was := recorded.get(part)) != (now := hashes.get(part))
        ]
        if changed:
            self._refuse("files", changed)

    def _refuse(self, part: str, changed: list[str]) -> NoReturn:
        raise CheckpointError(
            f"{self.path} holds a run with other {part}: {'; '.join(changed)}. Use the recorded {part}, or choose "
            "another folder"
        )

    def _recorded(self) -> dict[str, Any]:
        try:
            record = read_json(self.config)
            found = record["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(self._damaged(str(error))) from error
        if found != _FORMAT:
            raise CheckpointError(
                f"{self.config} has format {found!r}, this version of qpeft reads {_FORMAT}; choose another folder, or "
                "use the version that started the run"
            )
        for part in ("settings", "identity"):
            if not isinstance(record.get(part), dict):
                raise CheckpointError(self._damaged(f"it has no {part}"))
        return record

    def _damaged(self, how: str) -> str:
        return f"{self.config} is damaged ({how}); choose another folder for the run"


def own_files(settings: TrainSettings) -> dict[str, str]:
    """SHA-256 of the files that a run's settings name: its method, ansatz and backend, if FILE.py:NAME, and frames."""
    return file_hashes(settings.method, settings.method_settings, settings.backend_settings)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the shot budget, which may be raised to resume, and without the folders of files.

    Raises TypeError or AttributeError for settings of a wrong type.
    """
    if not isinstance(settings["method"], str):
        raise TypeError(f"the method is {settings['method']!r}")
    backend = {name: value for name, value in settings["backend_settings"].items() if name != "shot_budget"}
    return {
        **settings,
        "method": without_folder(settings["method"]),
        "method_settings": without_folders(settings["method_settings"]),
        "backend_settings": without_folders(backend),
    }


def _differences(name: str, was: Any, now: Any) -> list[str]:
    """What differs, by the names within two dicts."""
    if was == now:
        return []
    inner = []
    if isinstance(was, dict) and isinstance(now, dict):
        inner = [text for key in sorted({*was, *now}) for text in _differences(key, was.get(key), now.get(key))]
    return inner or [f"{name} was {was!r}, now {now!r}"]


def _named(value: Any, part: str) -> Any:
    """The name of the file of `part` in a field of the settings."""
    return value.get(part) if isinstance(value, dict) else value


def _short(sha: Any) -> str:
    """The beginning of a hash, as the end of `sha256:...` and of a commit."""
    kind, _, value = str(sha).rpartition(":")
    return f"{kind or 'sha256'} {value[:12]}" if sha else "none"


def _as_json(settings: TrainSettings) -> dict[str, Any]:
    """Settings as read back from JSON: tuples as lists, sets in order."""
    stored = {name: value for name, value in asdict(settings).items() if name != _NOT_STORED}
    return json.loads(json.dumps(stored, default=sorted))


def _environment() -> dict[str, Any]:
    import torch

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
