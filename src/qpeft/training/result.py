"""The result of a finished run, and its file result.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qpeft.errors import RUN_AGAIN, CheckpointError
from qpeft.files import filled, read_json, write_json
from qpeft.training.tasks import Score, task_class


@dataclass(frozen=True)
class TrainResult:
    """Scores, costs and folders of a finished run."""

    out: Path
    model: str
    method: str
    steps: int
    before: Score  # of the base; with a prefix or a new head, of the untrained model
    after: Score
    trainable: int  # trainable parameters, including a head
    deployed: int  # parameters at inference, in addition to the base
    stored_bytes: int  # weights file in adapter/
    exported_bytes: int  # weights files in exported/
    seconds: float  # from the first score to the last, including saving, without interruptions
    seconds_per_step: float | None  # median since the last resume, forward to optimizer
    data_sha256: str
    task: str = "causal-lm"
    trainable_head: int = 0  # of the trainable parameters, those of a classification head
    circuits: dict[str, Any] | None = None  # their costs; None on the exact simulator
    already_finished: bool = False

    @property
    def adapter(self) -> Path:
        """The compact checkpoint; loading a generated adapter from it needs qpeft."""
        return self.out / "adapter"

    @property
    def exported(self) -> Path:
        """The exported adapter, which loads without qpeft."""
        return self.out / "exported"

    @property
    def has_stock_form(self) -> bool:
        """Whether there is an exported adapter; stock PEFT has none that is equal to some adapters."""
        return self.exported_bytes > 0

    @property
    def to_load(self) -> Path:
        """The folder to load the adapter from: the exported adapter, or the compact checkpoint if there is none."""
        return self.exported if self.has_stock_form else self.adapter

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        scores = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        folders = {"out": str(self.out), "adapter": str(self.adapter), "exported": str(self.exported)}
        return {**asdict(self), **scores, **folders}


def write_result(path: Path, result: TrainResult) -> None:
    """Write result.json, which marks the run as finished, without its path (a folder can be moved) and defaults."""
    usual = {f.name: f.default for f in fields(result)}
    stored = {k: v for k, v in asdict(result).items() if k not in ("out", "already_finished") and v != usual[k]}
    write_json(path, stored)


def read_result(path: Path) -> TrainResult | None:
    """The result of a finished run; None for an unfinished one. Raises CheckpointError for a damaged file."""
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        score_class = task_class(stored.get("task", "causal-lm")).score_class
        scores = {name: filled(score_class, stored.pop(name)) for name in ("before", "after")}
        return filled(TrainResult, {**stored, **scores, "out": path.parent, "already_finished": True})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and {RUN_AGAIN}") from error
