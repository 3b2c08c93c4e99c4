"""A progress bar over one training run or several, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from qpeft.cli.console import stderr
from qpeft.training.progress import Progress

if TYPE_CHECKING:
    from qpeft.training.tasks import Score


_QUIET_SECONDS = 30.0  # without a terminal, the longest time between two lines of progress


class TrainingBar:
    """Shows the runs `names`, of `steps` steps each, as one bar with the time left.

    `steps` may be None for one run, which then gives its number of steps when it starts.

    Without a terminal there is no bar: scores are printed, and a line of progress every 30 seconds.

    Example:
        with TrainingBar(["lora", "qpa"], steps=70) as bar:
            train(settings, bar.run("lora"))
    """

    def __init__(self, names: Sequence[str], steps: int | None) -> None:
        from rich import progress

        self._names = list(names)
        self.steps = steps
        console = stderr()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<26}"),
            progress.BarColumn(bar_width=16),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("left  {task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("Starting", total=steps and steps * len(names), loss="")
        self._last_line = monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run(self, name: str) -> Progress:
        """The receiver of the events of the run `name`."""
        return _Run(self, name, self._names.index(name) * (self.steps or 0))

    def update(self, what: str, **state: Any) -> None:
        """Show what is being done; `completed` counts the steps of all runs."""
        self._bar.update(self._task, description=what, **state)

    def print(self, line: str, only_if_quiet: bool = False) -> None:
        """Print a line that stays, above the bar. `only_if_quiet`: if there is no bar and no line for a while."""
        if only_if_quiet and not (self._bar.disable and monotonic() - self._last_line > _QUIET_SECONDS):
            return
        self._last_line = monotonic()
        self._bar.console.print(line)


class _Run(Progress):
    def __init__(self, bar: TrainingBar, name: str, before: int) -> None:
        self._bar = bar
        self._name = name
        self._before = before

    def on_stage(self, what: str) -> None:
        self._bar.update(f"{self._name}: {what}")

    def on_note(self, line: str) -> None:
        self._bar.print(f"{self._name}: {line}")

    def on_start(self, total: int, done: int) -> None:
        if self._bar.steps is None:
            self._bar.steps = total
            self._bar.update(self._name, total=total)
        self._bar.update(self._name, completed=self._before + done, loss="")
        if done:
            self._bar.print(f"{self._name}: resuming from step {done}")

    def on_step(self, step: int, loss: float) -> None:
        self._bar.update(self._name, completed=self._before + step, loss=f"loss {loss:.3f}")
        line = f"{self._name}, step {step} of {self._bar.steps}: loss {loss:.3f}"
        self._bar.print(line, only_if_quiet=True)

    def on_eval(self, step: int, score: Score) -> None:
        self._bar.print(f"{self._name}, step {step}: {' '.join(score.headline)}")
