"""The files of a run folder, and the check that a folder belongs to the run.

run/  config.json     settings, hashes of data and base, versions
      metrics.jsonl   losses and scores, one line each
      jobs.jsonl      jobs sent to a backend, one line each
      checkpoints/    the Trainer's checkpoints
      adapter/        compact adapter: of a generated adapter the generator alone
      exported/       adapter that loads without qpeft
      result.json     written last: the run is finished
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import as_json, read_json, write_json
from qpeft_lab.data.names import part_of
from qpeft_lab.files import RUN_AGAIN, output_file, read_json_lines, remove_unfinished
from qpeft_lab.settings import RunSettings, settings_from
from qpeft_lab.training.inputs import RESULT
from qpeft_lab.training.score import Score
from qpeft_lab.user_files import without_folders

_PACKAGES = ("qpeft", "torch", "transformers", "peft", "accelerate", "datasets")
_NOT_STORED = "trust_remote_code"  # each call decides: a folder of others must not grant it
_FREE_TO_CHANGE = ("out", "report_to", _NOT_STORED)  # the result does not depend on them
# local sources are compared by content, which the identity hashes
_SOURCES = ("model", "data", "eval_data")


@dataclass(frozen=True)
class TrainResult:
    """Scores, costs and folders of a finished run."""

    out: Path
    model: str
    method: str
    task: str
    steps: int
    # of the untrained model: that is the base, but with a prefix, a new head, or QPA, whose adapter
    # begins near 0
    before: Score
    after: Score
    trainable: int  # trainable parameters, including a head
    trainable_head: int  # of the trainable parameters, those of a classification head
    deployed: int  # parameters at inference, in addition to the base
    seconds: float  # from the first score to the last, including saving, without interruptions
    seconds_per_step: float  # median since the last resume, forward to optimizer
    data_sha256: str
    circuits: dict[str, Any] | None = None  # their costs; None on the exact simulator
    stored_bytes: int = 0  # weights file in adapter/
    exported_bytes: int = 0  # weights files in exported/
    already_finished: bool = False

    @property
    def adapter(self) -> Path:
        """The compact adapter; loading a generated adapter from it needs qpeft."""
        return self.out / "adapter"

    @property
    def exported(self) -> Path:
        """The exported adapter, which loads without qpeft."""
        return self.out / "exported"

    @property
    def has_stock_form(self) -> bool:
        """Whether there is an exported adapter; stock PEFT has none that is equal to some adapters."""
        return self.exported_bytes > 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        scores = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        folders = {
            "out": str(self.out),
            "adapter": str(self.adapter),
            "exported": str(self.exported),
        }
        return {**asdict(self), **scores, **folders}


class RunFolder:
    """Paths of one run, its settings, and its result."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.jobs = path / "jobs.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.exported = path / "exported"
        self.result = path / RESULT

    def check(self, settings: RunSettings, identity: Mapping[str, str]) -> None:
        """Raise ConfigError unless the folder is new, empty or a run's; CheckpointError if it is
        that of another run.

        `identity` has hashes of the files that exist; others are not compared.
        """
        if not os.path.lexists(self.result):  # a finished run is only read
            output_file(self.path, is_folder=True)
        if not self.config.exists():
            if self.path.is_dir() and any(
                not path.name.startswith(".") for path in self.path.iterdir()
            ):
                raise ConfigError(
                    f"{self.path} is not empty and not a run folder; choose another folder"
                )
            return
        recorded, had = self.recorded()
        was = _compared(recorded)
        now = _compared(settings)
        for name in (name for name in _SOURCES if name in identity):  # compared by content
            if name == "model" or _are_of_one_part(was[name], now[name]):
                was[name] = now[name] = None
        self._refuse(
            _differences(was, now)
            + _differences({name: had.get(name) for name in identity}, identity)
        )

    def claim(self, settings: RunSettings, identity: Mapping[str, str]) -> None:
        """Write config.json, and remove unfinished files of a killed process.

        Raises CheckpointError if the recorded `identity` (hashes of data, base and the user's
        files) differs.
        """
        remove_unfinished(self.path)
        made_with = environment()
        if self.config.exists():
            self._refuse(_differences(self.recorded()[1], identity))
            made_with = read_json(self.config)["environment"]
        stored = {
            name: value for name, value in as_json(asdict(settings)).items() if name != _NOT_STORED
        }
        write_json(
            self.config, {"settings": stored, "identity": identity, "environment": made_with}
        )

    def write_result(self, result: TrainResult) -> None:
        """Write result.json, which marks the run as finished, without its path: a folder can be
        moved.
        """
        stored = {
            name: value
            for name, value in asdict(result).items()
            if name not in ("out", "already_finished")
        }
        write_json(self.result, stored)

    def read_result(self) -> TrainResult | None:
        """The result of a finished run; None for an unfinished one. Raises CheckpointError for a
        damaged file.
        """
        if not self.result.exists():
            return None
        try:
            stored = {**read_json(self.result), "out": self.path, "already_finished": True}
            return TypeAdapter(TrainResult).validate_python(stored)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.result} is damaged ({error}); delete it and {RUN_AGAIN}"
            ) from error

    def _refuse(self, changed: list[str]) -> None:
        if changed:
            raise CheckpointError(
                f"{self.path} holds another run: {'; '.join(changed)}. Repeat that run, or choose"
                " another folder"
            )

    def recorded(self) -> tuple[RunSettings, dict[str, str]]:
        """Settings and hashes in config.json. Raises CheckpointError if it is missing or damaged."""
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} has no {self.config.name}: it is not a run folder")
        try:
            record = read_json(self.config)
            return settings_from(RunSettings, record["settings"]), {**record["identity"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.config} is damaged ({error}); choose another folder for the run"
            ) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics.jsonl; none if there is no file. Raises CheckpointError if it
    is damaged.
    """
    return read_json_lines(path, lambda row: row["step"] >= 0, "choose another folder for the run")


def _compared(settings: RunSettings) -> dict[str, Any]:
    """The settings on which the result depends: not the shot budget, which may be raised, nor the
    folders of files.
    """
    known = {
        name: value
        for name, value in as_json(asdict(settings)).items()
        if name not in _FREE_TO_CHANGE
    }
    backend = {
        name: value for name, value in settings.backend_settings.items() if name != "shot_budget"
    }
    return without_folders({**known, "backend_settings": backend})


def _are_of_one_part(source: str | None, other: str | None) -> bool:
    """Whether two names of data name the same split and the like, wherever its files are."""
    return None in (source, other) or part_of(str(source)) == part_of(str(other))


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, by the names within two dicts, which may contain dicts."""
    differences = []
    for name in sorted({*was, *now}):
        before = was.get(name)
        after = now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differences += _differences(before, after)
        elif before != after:
            differences.append(f"{name} was {before!r}, now {after!r}")
    return differences


@cache
def environment() -> dict[str, Any]:
    """Versions of packages, and the hardware of this process."""
    device = f"cpu {platform.machine()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        with suppress(OSError):  # only Linux has it
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            device = next(
                (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                device,
            )
    return {
        "device": f"{device}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
