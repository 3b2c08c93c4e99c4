"""The tasks that a run can train: one module for each."""

from __future__ import annotations

from importlib import import_module

from qpeft.training.tasks.task import Score, Task

__all__ = ["Score", "Task", "task_class"]

_TASKS = {
    "causal-lm": "causal_lm:CausalLM",
    "text-classification": "text_classification:TextClassification",
    "image-classification": "image_classification:ImageClassification",
}


def task_class(name: str) -> type[Task]:
    """The class of the task named `name` in `TrainSettings`."""
    module, found = _TASKS[name].split(":")
    return getattr(import_module(f"qpeft.training.tasks.{module}"), found)
