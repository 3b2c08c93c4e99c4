"""Runs a `qpeft` command until it ends or is killed: in a fork of this process, which has everything imported, or as
`python -m qpeft`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import psutil

from kill_moments import PLAN

_PATIENCE = 60.0  # seconds until cells without a runner must have ended
_LIMIT = 600.0  # seconds per attempt
_PAUSE = 0.002
_PREPARED = "jemalloc_bg_thd"  # a thread of pyarrow, which stops it during a fork
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@dataclass(frozen=True)
class Moment:
    """When an attempt is killed: after `seconds`, or before the `change`-th file operation; with neither it may end."""

    seconds: float | None = None
    change: int | None = None
    whom: str = "all"  # or "runner", whose cells must then end
    is_command: bool = False  # a new process instead of a fork


@dataclass(frozen=True)
class Ended:
    """The exit code (negative after a signal), seconds, and the number of file operations of a fork."""

    code: int
    seconds: float
    changes: int


class Attempts:
    """Runs one attempt at a time; their output goes to a log in `folder`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._plan, self._counter, self._log = folder / "plan.json", folder / "changes", folder / "log.txt"
        self._plan.unlink(missing_ok=True)
        os.environ[PLAN] = str(self._plan)  # also read by the server that forks cells
        self._server = _start_server()

    def run(self, words: list[str], out: Path, moment: Moment) -> Ended:
        """Run `qpeft WORDS`, which works in `out`, until `moment`, and wait for the end of all its processes."""
        self._counter.write_bytes(b"")
        plan = {"folder": str(out), "counter": str(self._counter), "at": moment.change, "whom": moment.whom}
        self._plan.write_text(json.dumps(plan))
        began, then = time.perf_counter(), time.time()
        runner = self._spawn(words) if moment.is_command else self._fork(words)
        if moment.is_command and moment.seconds is not None:  # else most are killed during imports
            _wait_until(lambda: _has_changed(out, since=then), _LIMIT, "the command does not start")
        cells = psutil.Process(runner) if moment.is_command else self._server
        code = _until(runner, cells, moment)
        seconds = time.perf_counter() - began
        _wait_until(lambda: not _children(self._server), _PATIENCE, "a cell outlives its runner")
        return Ended(code, seconds, self._counter.stat().st_size)

    def _fork(self, words: list[str]) -> int:
        runner = os.fork()
        if runner == 0:
            self._become(words)
        return runner

    def _become(self, words: list[str]) -> None:
        """Never returns."""
        code = 1
        try:
            log = os.open(self._log, _APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            server = forkserver._forkserver  # type: ignore[attr-defined]
            server.ensure_running = lambda: None  # it runs, but not as a child of this process
            from qpeft.cli.app import build

            build()(words, prog_name="qpeft")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(code)

    def _spawn(self, words: list[str]) -> int:
        to_log = [(os.POSIX_SPAWN_OPEN, 1, str(self._log), _APPEND, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
        command = [sys.executable, "-m", "qpeft", *words]
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=to_log)


def _start_server() -> psutil.Process:
    """The process from which cells are forked, one for all attempts; it and this one import everything."""
    from qpeft.cli import bar, compare_bar  # noqa: F401
    from qpeft.compare import cell_run, runner  # noqa: F401

    forkserver.set_forkserver_preload(["qpeft.compare.preload", "kill_moments"])
    first = multiprocessing.get_context("forkserver").Process(target=int)
    first.start()
    first.join()  # the server is ready
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len([name for name in names if name != _PREPARED]) > 1:
        raise RuntimeError(f"a process with the threads {names} cannot be forked safely; set OMP_NUM_THREADS=1")
    return psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


def _until(runner: int, cells: psutil.Process, moment: Moment) -> int:
    """The exit code of `runner`, which is killed at its moment, and its cells if the moment includes them."""
    end = time.monotonic() + (_LIMIT if moment.seconds is None else moment.seconds)
    while time.monotonic() < end:
        pid, status = os.waitpid(runner, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_PAUSE)
    family = _children(cells)
    for pid in [runner, *(child.pid for child in family if moment.whom == "all")]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(runner, 0)
    if psutil.wait_procs(family, _PATIENCE)[1]:
        raise RuntimeError("a cell outlives its runner")
    if moment.seconds is None:
        raise RuntimeError(f"a run did not end within {_LIMIT:g} s")
    return os.waitstatus_to_exitcode(status)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def _has_changed(folder: Path, since: float) -> bool:
    with suppress(FileNotFoundError):  # files appear and disappear
        return any(path.stat().st_mtime > since for path in folder.rglob("*"))
    return True


def _wait_until(is_so: Callable[[], object], seconds: float, why_not: str) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(why_not)
        time.sleep(_PAUSE)
