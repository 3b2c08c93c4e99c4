"""Progress of training runs on standard error: bars of rich on a terminal, and a line per event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpeft_lab.cli.console import line, stderr
from qpeft_lab.progress import Progress

if TYPE_CHECKING:
    from rich import progress

    from qpeft_lab.training.score import Score


def bars() -> progress.Progress:
    """Bars with the time left, for `TrainingBar` and for a comparison; nothing without a terminal."""
    from rich import progress

    columns = (*progress.Progress.get_default_columns(), "{task.fields[text]}")
    return progress.Progress(*columns, console=stderr(), disable=not stderr().is_terminal, transient=True)


class TrainingBar(Progress):
    """Shows the steps of the run `name` as one of `shown`, and prints its scores."""

    def __init__(self, shown: progress.Progress, name: str) -> None:
        self._bars, self._name = shown, name
        self._task = shown.add_task(name, total=None, text="")

    def on_stage(self, what: str) -> None:
        self._bars.update(self._task, text=what)

    def on_note(self, line: str) -> None:
        self._print(f": {line}")

    def on_start(self, total: int, done: int) -> None:
        self._bars.update(self._task, total=total, completed=done)
        if done:
            self._print(f": resuming from step {done}")

    def on_step(self, step: int, loss: float) -> None:
        self._bars.update(self._task, completed=step, text=f"loss {loss:.3f}")

    def on_eval(self, step: int, score: Score) -> None:
        self._print(f", step {step}: {' '.join(score.headline)}")

    def _print(self, text: str) -> None:
        line(stderr(), f"{self._name}{text}")
