"""Kills an attempt at the n-th file operation in a folder, counted over all processes of the attempt.

A process that imports this module does this to its forks: runners, and the cells of a study. The environment variable
PLAN names a JSON file with the fields

    folder    operations in it count: files opened for writing, renamed, removed, flushed; folders made and removed
    counter   a file that grows by a byte with each operation
    at        the operation, counted from 1, before which the attempt is killed; null: never
    whom      "runner": its cells are not killed; "all": all processes are

Random times never fall between two renames; these moments do.
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
_FOLDER_OF = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}  # index of dir_fd in the arguments


def _arm() -> None:
    """Called in every new fork."""
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
        elif event in _FOLDER_OF:
            change(_place(arguments[0], arguments[_FOLDER_OF[event]]))

    def fsync(target: Any, really: Any = os.fsync) -> None:
        change(_opened(target if isinstance(target, int) else target.fileno()))
        really(target)

    os.fsync = fsync  # has no audit event
    sys.addaudithook(audit)


def _place(path: Any, folder: int) -> str:
    """`path`, which may be relative to an open folder."""
    name = os.fsdecode(path)
    return name if folder < 0 else f"{_opened(folder)}/{name}"


def _opened(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _count(counter: int) -> int:
    """The number of operations so far, of all processes: an append is atomic."""
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
    """The processes of the other cells."""
    if not is_cell:
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    import psutil

    return [child.pid for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


jinja2.Environment.compile = cache(jinja2.Environment.compile)  # saves a third of a run, spent on PEFT's model cards
os.register_at_fork(before=gc.freeze, after_in_child=_arm)  # frozen: a collection would copy all imported objects
