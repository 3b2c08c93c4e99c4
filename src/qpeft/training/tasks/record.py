"""task.json: what the folder of a classifier's adapter says of its classes and its base.

Stock PEFT keeps neither the names of the classes nor their number, and needs the number to load the head.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError
from qpeft.files import write_json
from qpeft.training.tasks.labels import Labels

RECORD = "task.json"


@dataclass(frozen=True)
class TaskRecord:
    """A classification task, the classes in the order of their indices, and the padding token where there is one."""

    task: str
    labels: tuple[str, ...]
    pad_token_id: int | None = None

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base."""
        return AUTO_CLASSES[self.task]

    def options(self) -> dict[str, Any]:
        """What the base is loaded with, beside its name."""
        pad = {} if self.pad_token_id is None else {"pad_token_id": self.pad_token_id}
        return {**Labels(self.labels).options(), **pad}

    def write(self, folder: Path) -> None:
        """Put it into an adapter folder."""
        write_json(folder / RECORD, asdict(self))


AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


def read_record(folder: Path) -> TaskRecord | None:
    """The record of an adapter folder; None without one: a language model. Raises CheckpointError if damaged."""
    file = folder / RECORD
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        record = TaskRecord(str(stored["task"]), tuple(map(str, stored["labels"])), stored["pad_token_id"])
        if record.task not in AUTO_CLASSES:
            raise ValueError(f"unknown task {record.task!r}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it from a copy of the folder") from error
