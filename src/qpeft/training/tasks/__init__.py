"""The tasks that a run can train: one module for each."""

from __future__ import annotations

from importlib import import_module

from qpeft.training.task_types import TASKS
from qpeft.training.tasks.task import Score, Task

__all__ = ["Score", "Task", "task_class"]


def task_class(name: str) -> type[Task]:
    """The class of the task named `name` in `TrainSettings`."""
    module, found = TASKS[name].target.split(":")
    return getattr(import_module(f"qpeft.training.tasks.{module}"), found)
