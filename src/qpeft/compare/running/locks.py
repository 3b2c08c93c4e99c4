"""Who may work at the same time: locks that the operating system drops with their holders."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qpeft.errors import ConfigError

_CELLS = ".cells.lock"
_PAUSE = 0.2  # seconds between two looks at a lock
_PATIENCE = 30.0


@contextmanager
def cell_at_work(folder: Path) -> Iterator[None]:
    """Held by every process that works on a cell of the study in `folder`."""
    with (folder / _CELLS).open("w") as lock:
        _try(lock, is_shared=True)
        yield


def wait_for_earlier_cells(folder: Path, say: Callable[[str], None]) -> None:
    """Return once no process of an earlier, killed run works in `folder` any more; they end by themselves.

    Raises ConfigError if one is still there after half a minute.
    """
    with (folder / _CELLS).open("w") as lock:
        end = time.monotonic() + _PATIENCE
        has_said = False
        while not _try(lock):
            if time.monotonic() > end:
                raise ConfigError(
                    f"a process of an earlier run still works in {folder}; end it, or name another folder"
                )
            if not has_said:
                say("Waiting for a process of the run before to end")
                has_said = True
            time.sleep(_PAUSE)


def forget_cells(folder: Path) -> None:
    """Leave no trace, once no cell is at work."""
    (folder / _CELLS).unlink(missing_ok=True)


@contextmanager
def alone_on_machine(say: Callable[[str], None], is_given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Held while something is timed: of all studies of this user on this machine, one at a time.

    Waits as long as another has it, or until `is_given_up()`; the block runs in either case.
    """
    with timing_lock().open("w") as lock:
        has_said = False
        while not _try(lock) and not is_given_up():
            if not has_said:
                say("Waiting for another study on this machine, which is measuring times")
                has_said = True
            time.sleep(_PAUSE)
        yield


def timing_lock() -> Path:
    """The file that is locked while something is timed."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"qpeft-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "timing.lock"


def _try(lock: IO[str], is_shared: bool = False) -> bool:
    """True if the lock is ours now, or if there are none on this platform or file system."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
