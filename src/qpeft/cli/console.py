"""Consoles, tables, formatted values and progress output that the commands share."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Answer:
    """The result of a command: `data` for `--json`, `show` for a console."""

    data: dict[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0


def stdout() -> Console:
    """The console of results, which alone go to standard output."""
    from qpeft.cli.safe_console import SafeConsole

    return SafeConsole(highlight=False, markup=False)


@cache
def stderr() -> Console:
    """The console of progress, notes and errors. One object, so that a note is printed above a progress bar."""
    from qpeft.cli.safe_console import SafeConsole

    return SafeConsole(stderr=True, highlight=False, markup=False)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(_plain(data), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """`value` in types that JSON has: a path becomes a string, NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_failure(error: BaseException, message: str, exit_code: int) -> None:
    """A failure as a JSON object on standard output."""
    print_json({"error": type(error).__name__, "message": message, "exit_code": exit_code})


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the text `what` on a terminal while the block runs; the yielded function changes the text."""
    console = stderr()
    with console.status(what) if console.is_terminal else nullcontext() as status:
        yield (lambda text: None) if status is None else status.update


def say(label: str, message: str, style: str) -> None:
    """One line on standard error; not wrapped, so that paths and names can be copied."""
    from rich.text import Text

    stderr().print(Text.assemble((label, style), " ", message), soft_wrap=True)


def scored(batches: Sequence[int], who: str) -> Iterable[int]:
    """The same batches, with the time left shown on a terminal."""
    from rich.progress import track

    console = stderr()
    return track(batches, f"Scoring {who}", console=console, disable=not console.is_terminal, transient=True)


def print_code(console: Console, lines: str) -> None:
    """Lines to copy and paste, neither indented nor wrapped."""
    for line in lines.splitlines():
        console.print(line, style="cyan", soft_wrap=True)


def count(n: int) -> str:
    """`12345` as `12,345`."""
    return f"{n:,}"


def percent(share: float) -> str:
    """`0.01322` as `1.322%`; a small share has two significant digits: `0.0000029` is `0.00029%`."""
    decimals = max(3, 1 - math.floor(math.log10(100 * share))) if share > 0 else 3
    return f"{share:.{decimals}%}"


def size(n_bytes: int) -> str:
    """`1234567` bytes as `1.2 MB`; below 1,000 bytes as `999 B`."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(columns):
        made.add_column(name, justify="right" if position else "left", header_style="bold")
    for row in rows:
        made.add_row(*row)
    return made


def facts(rows: Iterable[Sequence[str]]) -> Table:
    """Lines of name, value, and a remark."""
    return _grid(rows, {"no_wrap": True}, {"justify": "right", "style": "bold"}, {"style": "dim"})


def remarks(rows: Iterable[tuple[str, str]]) -> Table:
    """Lines of a label and a text, which is wrapped."""
    return _grid(rows, {"no_wrap": True, "style": "bold"}, {"overflow": "fold"})


def _grid(rows: Iterable[Sequence[str]], *columns: dict[str, Any]) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for column in columns:
        grid.add_column(**column)
    for row in rows:
        grid.add_row(*row)
    return grid


def duration(seconds: float) -> str:
    """`42 s`, `3:05`, `2:03:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
