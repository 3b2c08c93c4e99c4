"""A bar with the time left over one training run or several, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Self

from qpeft.cli.console import stderr
from qpeft.cli.score import headline

if TYPE_CHECKING:
    from qpeft.training.progress import Progress
    from qpeft.training.tasks import Score


_QUIET_SECONDS = 30.0  # without a terminal, nothing is said for so long at most


class TrainingBar:
    """Shows `names`' runs of `steps` steps each as one piece of work; without a terminal, scores and a line at times.

    Example:
        with TrainingBar(["lora", "qpa"], steps=70) as bar:
            train(settings, bar.run("lora"))
    """

    def __init__(self, names: Sequence[str], steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._names = list(names)
        self.steps = steps
        console = stderr()
        self._bar = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left  {task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("Starting", total=steps * len(names), loss="")
        self._said = monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run(self, name: str) -> Progress:
        """What the run called `name` reports to."""
        return _Run(self, name, self._names.index(name) * self.steps)

    def say(self, what: str) -> None:
        """What is being done, before the bar."""
        self._bar.update(self._task, description=what)

    def advance(self, done: int, loss: str) -> None:
        """`done` steps of all runs together are behind us."""
        self._bar.update(self._task, completed=done, loss=loss)

    def note(self, line: str) -> None:
        """A line that stays, above the bar; it is printed without a terminal too."""
        self._said = monotonic()
        self._bar.console.print(line)

    def tell(self, line: str) -> None:
        """The same where there is no bar, and only if nothing was said for a while."""
        if self._bar.disable and monotonic() - self._said > _QUIET_SECONDS:
            self.note(line)


class _Run:
    def __init__(self, bar: TrainingBar, name: str, before: int) -> None:
        self._bar = bar
        self._name = name
        self._before = before

    def on_stage(self, what: str) -> None:
        self._bar.say(f"{self._name}: {what}")

    def on_note(self, line: str) -> None:
        self._bar.note(f"{self._name}: {line}")

    def on_start(self, total: int, done: int) -> None:
        self._bar.say(self._name)
        self._bar.advance(self._before + done, "")
        if done:
            self._bar.note(f"{self._name}: going on from step {done}")

    def on_step(self, step: int, loss: float) -> None:
        self._bar.say(self._name)
        self._bar.advance(self._before + step, f"loss {loss:.3f}")
        self._bar.tell(f"{self._name}, step {step} of {self._bar.steps}: loss {loss:.3f}")

    def on_eval(self, step: int, score: Score) -> None:
        self._bar.note(f"{self._name}, step {step}: {' '.join(headline(score.to_dict()))}")
