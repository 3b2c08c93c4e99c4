"""Consoles, tables, formatted values, progress output and silent libraries, for all commands."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import QpeftWarning
from qpeft.files import write_text
from qpeft_lab.files import json_line
from qpeft_lab.progress import Progress

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console
    from rich.table import Table

    from qpeft_lab.training.score import Score

_PACKAGE = str(Path(__file__).parents[2] / "qpeft")  # also the beginning of qpeft_lab

# libraries read these when they are imported; commands import them inside their functions
_SILENCE = {
    "DATASETS_VERBOSITY": "critical",  # it logs the errors that it also raises
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
# loggers; PEFT imports these packages where they are installed
_VERBOSE = ("bitsandbytes", "torchao", "torch.utils._pytree")
_NARROWEST = 60  # columns; in a narrower terminal, tables would lose their values
_SECONDS_OF_A_LINE = 30  # at least, between two lines about steps where there is no bar


@dataclass(frozen=True)
class Answer:
    """The result of a command: `data` for `--json`, `show` for a console, by default the same
    values.
    """

    data: dict[str, Any]
    show: Callable[[Console], None] | None = None
    exit_code: int = 0

    def print(self) -> None:
        """Print it on standard output, to which nothing else goes."""
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        console.width = max(console.width, _NARROWEST)
        console.print(facts(listed(self.data))) if self.show is None else self.show(console)


def write_page(file: Path, show: Callable[[Console], None]) -> None:
    """Write what `show` prints as one HTML file."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=110, highlight=False, markup=False)
    show(console)
    write_text(file, console.export_html(inline_styles=True))


@cache
def stderr() -> Console:
    """The console of spinners, bars, notes and errors. One object, so that a note is printed above
    a progress bar.
    """
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Silence the warnings, progress bars and logs of other libraries, unless `debug`; qpeft's own
    become notes.
    """
    if debug:
        yield
        return
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="always"):
        warnings.showwarning = partial(_show_own, set())
        yield


def _show_own(
    shown: set[str], message: Warning | str, category: Any, filename: str, *_: Any
) -> None:
    """Show a warning of qpeft as a note, each text once: a config can be made several times."""
    text = str(message)
    # those of a config are attributed to its caller, which can be outside of the package
    if filename.startswith(_PACKAGE) or issubclass(category, QpeftWarning):
        if text not in shown:
            say("Note:", text, "bold yellow")
        shown.add(text)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output, in which NaN and infinity are null."""
    sys.stdout.write(json_line(data))


def print_failure(error: BaseException, message: str, exit_code: int) -> None:
    """A failure as a JSON object on standard output."""
    print_json({"error": type(error).__name__, "message": message, "exit_code": exit_code})


def bars() -> progress.Progress:
    """Bars with the time left, for `TrainingBar` and for a comparison; nothing without a terminal."""
    from rich import progress

    columns = (*progress.Progress.get_default_columns(), "{task.fields[text]}")
    return progress.Progress(
        *columns,
        console=stderr(),
        disable=not stderr().is_terminal,
        transient=True,
        speed_estimate_period=3600,  # a step may take longer than the usual 30 seconds
    )


class TrainingBar(Progress):
    """Shows the steps of the run `name` as one of `shown`, and prints a line per event.

    Without a terminal, the second step has a line too, the first whose time is known, and later
    the first step, or part of an evaluation, after each half minute.
    """

    def __init__(self, shown: progress.Progress, name: str) -> None:
        self._name = name
        self._shown = shown
        self._is_training = False
        self._next_line = 0.0  # the time of the next line about a step
        self._bar = shown.add_task(name, total=None, text="")
        self._update = partial(shown.update, self._bar)

    def on_stage(self, what: str) -> None:
        self._update(text=what)
        if not stderr().is_terminal:
            self.on_note(what)

    def on_part(self, what: str, done: int, total: int) -> None:
        if self._is_training:  # the bar counts steps
            text = f"{what}: batch {done} of {total}"
            self._update(text=text)
            now = self._shown.get_time()
            if done and now >= self._next_line and not stderr().is_terminal:
                self._next_line = now + _SECONDS_OF_A_LINE
                self.on_note(text)
            return
        self._update(text=what, completed=done, total=total)
        quarter = -(-total // 4)
        if not stderr().is_terminal and done and done % quarter == 0:
            self.on_note(f"{what}: batch {done} of {total}")

    def on_note(self, text: str) -> None:
        line(stderr(), f"{self._name}: {text}")

    def on_start(self, total: int, done: int) -> None:
        self._is_training = True
        self._shown.reset(self._bar, total=total, completed=done)
        if done:
            self.on_note(f"resuming from step {done}")
        else:
            self.on_stage("Evaluating before training")

    def on_step(self, step: int, loss: float) -> None:
        self._update(completed=step)
        text = f"training loss {loss:.3f}"
        now = self._shown.get_time()
        if speed := self._task.speed:  # steps per second; None at the first step of this call
            text += f", {1 / speed:.3g} s per step"
            if now >= self._next_line and not stderr().is_terminal:
                self._next_line = now + _SECONDS_OF_A_LINE
                self._note_step(step, text)
        self._update(text=text)

    def on_eval(self, step: int, score: Score) -> None:
        self._note_step(step, f"{' '.join(score.headline)} on held-out data")
        if not step:
            self.on_stage("Training")

    def _note_step(self, step: int, text: str) -> None:
        task = self._task
        left = f", {duration(task.time_remaining)} left" if task.time_remaining else ""
        self.on_note(f"step {step} of {task.total:.0f}: {text}{left}")

    @property
    def _task(self) -> progress.Task:
        return self._shown.tasks[self._shown.task_ids.index(self._bar)]


def say(label: str, message: str, style: str = "bold") -> None:
    """One line on standard error; not wrapped, so that paths and names can be copied."""
    from rich.text import Text

    stderr().print(Text.assemble((label, style), " ", message), soft_wrap=True)


def line(console: Console, text: str, style: str | None = None) -> None:
    """Lines that are not wrapped, so that paths, names and code can be copied."""
    console.print(text, style=style, soft_wrap=True)


def size(n_bytes: int) -> str:
    """`1234567` bytes as `1.23 MB`; below 1,000 bytes as `999 B`."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def duration(seconds: float) -> str:
    """`40 s`, `3 min` or `2.3 h`, in two digits."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 90 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def cell(value: Any) -> str:
    """A value as text: 12,345 for a whole number, four digits of a fraction, names with commas."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def table(columns: Sequence[str], rows: Iterable[Iterable[Any]], title: str | None = None) -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for position, name in enumerate(columns):
        made.add_column(
            name, justify="right" if position else "left", header_style="bold", overflow="fold"
        )
    for row in rows:
        made.add_row(*map(cell, row))
    return made


def facts(rows: Iterable[Iterable[Any]]) -> Table:
    """Lines of a name and a text, or of a name, a number and a remark."""
    from rich.table import Table

    lines = [tuple(map(cell, row)) for row in rows]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(
        style="bold", overflow="fold", justify="right" if max(map(len, lines)) > 2 else "left"
    )
    grid.add_column(style="dim")
    for row in lines:
        grid.add_row(*row)
    return grid


def listed(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """The `facts` of JSON values: `stored_bytes` 81920 is `stored bytes  81.9 KB`; without what is
    None or empty.
    """
    for name, value in values.items():
        title = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            yield title, ""
            yield from listed(value, f"{indent}  ")
        elif value not in (None, [], ""):
            yield title, size(value) if name.endswith("bytes") else cell(value)
