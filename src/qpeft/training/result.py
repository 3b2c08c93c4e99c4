"""What a finished run hands back, and the same as result.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError
from qpeft.files import filled, read_json, write_json
from qpeft.training.tasks import Score, task_class


@dataclass(frozen=True)
class TrainResult:
    """Scores, costs and folders of a finished run."""

    out: Path
    model: str
    method: str
    steps: int
    before: Score  # the base; for prefix, and for a new head, the model as training begins
    after: Score
    trainable: int  # numbers trained, a head's among them
    deployed: int  # numbers needed at inference beside the base
    stored_bytes: int  # weights file in adapter/
    exported_bytes: int  # weights files in exported/
    seconds: float  # from the first score to the last, with saving, interruptions left out
    seconds_per_step: float | None  # median since the last resume, forward to optimiser
    data_sha256: str
    task: str = "causal-lm"
    trainable_head: int = 0  # of the trainable parameters, those of a classification head
    circuits: dict[str, Any] | None = None  # what they cost, where they did not run on the exact simulator
    already_finished: bool = False

    @property
    def adapter(self) -> Path:
        """The compact folder; loading one that a generator made needs qpeft."""
        return self.out / "adapter"

    @property
    def exported(self) -> Path:
        """The folder that loads without qpeft."""
        return self.out / "exported"

    @property
    def has_stock_form(self) -> bool:
        """Whether there is an exported folder; stock PEFT has no bottleneck adapter."""
        return self.exported_bytes > 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        scores = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        folders = {"out": str(self.out), "adapter": str(self.adapter), "exported": str(self.exported)}
        return {**asdict(self), **scores, **folders}


def write_result(path: Path, result: TrainResult) -> None:
    """Declare the run finished. Where it lies is left out, for a folder can be moved, and so is what is as usual."""
    usual = {f.name: f.default for f in fields(result)}
    stored = {k: v for k, v in asdict(result).items() if k not in ("out", "already_finished") and v != usual[k]}
    write_json(path, stored)


def read_result(path: Path) -> TrainResult | None:
    """The result of a finished run; None of an unfinished one. Raises CheckpointError for a damaged file."""
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        score_class = task_class(stored.get("task", "causal-lm")).score_class
        scores = {name: filled(score_class, stored.pop(name)) for name in ("before", "after")}
        return filled(TrainResult, {**stored, **scores, "out": path.parent, "already_finished": True})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it, and the same command writes it again"
        ) from error
