"""task.json in the adapter folder of a classifier or regression: its outputs, and the arguments that load its base.

PEFT saves neither the names nor the number of the classes, and needs the number to load the head.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError
from qpeft.files import read_json, write_json, write_text
from qpeft.training.task_types import TASKS

RECORD = "task.json"


@dataclass(frozen=True)
class TaskRecord:
    """A classification or regression, and the arguments that load its base."""

    task: str
    labels: tuple[str, ...]  # in the order of their indices
    pad_token_id: int | None = None  # of texts; None for images
    ignore_mismatched_sizes: bool = False  # whether the base has a head for another number of classes

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base."""
        return TASKS[self.task].auto_class

    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that load the base with stock transformers."""
        pad = {} if self.pad_token_id is None else {"pad_token_id": self.pad_token_id}
        other = {"ignore_mismatched_sizes": True} if self.ignore_mismatched_sizes else {}
        return {"num_labels": len(self.labels), **pad, **other}

    def write(self, folder: Path) -> None:
        """Write task.json to an adapter folder, and add these arguments and the classes to its model card."""
        write_json(folder / RECORD, asdict(self))
        card = folder / "README.md"
        options = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        text = card.read_text("utf-8").replace(", dtype='float32')", f", dtype='float32', {options})")
        classes = ", ".join(f"{index}: `{name}`" for index, name in enumerate(self.labels))
        outputs = f"## Classes\n\n{self.task}, by index (also in `{RECORD}`): {classes}\n"
        if TASKS[self.task].is_regression:
            outputs = f"## Output\n\n{self.task}: the logit of a text is the predicted number.\n"
        write_text(card, f"{text}\n{outputs}")


def read_record(folder: Path) -> TaskRecord | None:
    """The record of an adapter folder; None for a language model. Raises CheckpointError if it is damaged."""
    file = folder / RECORD
    if not file.exists():
        return None
    try:
        stored = read_json(file)
        record = TaskRecord(**{**stored, "labels": tuple(map(str, stored["labels"]))})
        if record.task not in TASKS or TASKS[record.task].is_language_model:
            raise ValueError(f"unknown task {record.task!r}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it from a copy of the folder") from error


def how_to_load(folder: Path) -> dict[str, Any]:
    """Arguments of `load_lines` for the base of an adapter folder."""
    record = read_record(folder)
    return {} if record is None else {"auto_class": record.auto_class, "options": record.options()}
