"""File locks, which the operating system releases when their process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qpeft.errors import ConfigError

_PAUSE = 0.2  # seconds between two attempts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against other processes, by its file `.lock`.

    Without effect where the platform or the file system has no locks. Raises ConfigError if another process has locked
    the folder.
    """
    folder = Path(os.path.realpath(folder))  # a link may name a folder that does not exist yet
    with waiting_for(folder / ".lock", lambda: False) as is_ours:
        if not is_ours:
            raise ConfigError(f"another process uses the run folder {folder}; wait until it ends, or choose another")
        yield


@contextmanager
def waiting_for(path: Path, keep_waiting: Callable[[], bool]) -> Iterator[bool]:
    """Create and lock the file `path`, waiting while `keep_waiting()`; yields whether it is locked.

    The content is neither read nor changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not (is_ours := _acquire(handle)) and keep_waiting():
            time.sleep(_PAUSE)
        yield is_ours
    finally:
        os.close(handle)


def _acquire(handle: int) -> bool:
    """Lock the open file; True also where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a platform or a file system without locks
        return True
    return True
