"""Where an attempt dies: at the n-th change of a file below a folder, counted over all processes of the attempt.

Imported by a process that forks, it arms what is forked: runners, and the cells of a comparison. The file that the
environment variable PLAN names says of the attempt:

    folder    changes below it count: files opened for writing, renamed, removed, flushed; folders made and removed
    counter   a file that grows by a byte with each change
    at        the change, counted from 1, before which the attempt dies; null: never
    whom      "runner": its cells live on; "all": whoever works for it dies with it

Random moments never hit the instant between two renames; this does.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

PLAN = "QPEFT_KILLS_PLAN"

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_FOLDER_OF = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 2,
    "os.rmdir": 1,
}  # the place of dir_fd in an event's arguments


def _arm() -> None:
    """Count from now on; called in a process that was forked just now."""
    file = Path(os.environ.get(PLAN, ""))
    if not file.is_file():
        return
    plan = json.loads(file.read_text())
    counter = os.open(plan["counter"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def change(path: Any) -> None:
        if str(Path(path).absolute()).startswith(plan["folder"] + os.sep) and _count(counter) == plan["at"]:
            _strike(plan["whom"])

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & _WRITES:
                change(os.fsdecode(path))
        elif event in _CHANGES:
            change(_place(arguments[0], arguments[_FOLDER_OF[event]]))

    def fsync(target: Any, really: Any = os.fsync) -> None:
        change(_opened(target if isinstance(target, int) else target.fileno()))
        really(target)

    os.fsync = fsync  # no audit event tells of it: written, and not yet renamed
    sys.addaudithook(audit)


def _place(path: Any, folder: int) -> str:
    """`path`, which may be relative to an open folder."""
    name = os.fsdecode(path)
    return name if folder < 0 else f"{_opened(folder)}/{name}"


def _opened(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _count(counter: int) -> int:
    """The number of changes so far; appending makes it the same count for all processes."""
    os.write(counter, b".")
    return os.lseek(counter, 0, os.SEEK_CUR)


def _strike(whom: str) -> None:
    runner = multiprocessing.parent_process()  # of a cell; None in the runner
    if whom == "all":
        for pid in _others(runner is not None):
            _kill(pid)
    if runner is not None and runner.pid is not None:
        _kill(runner.pid)
    if whom == "all" or runner is None:
        _kill(os.getpid())


def _others(is_cell: bool) -> list[int]:
    """The processes of cells but for this one."""
    if not is_cell:
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    import psutil

    return [child.pid for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


jinja2.Environment.compile = cache(jinja2.Environment.compile)  # else a third of a run is spent on PEFT's cards
os.register_at_fork(before=gc.freeze, after_in_child=_arm)  # frozen: else a collection copies all that is imported
