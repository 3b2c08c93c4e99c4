"""File locks, which the operating system releases when their process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from qpeft.errors import ConfigError
from qpeft.files import is_disk_full, open_own

_LOCK = ".lock"
_PAUSE = 0.2  # seconds between two attempts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against other processes; it is removed if the block leaves it empty.

    Without effect where the platform or the file system has no locks.

    Raises:
        ConfigError: the folder cannot be created, or another process has locked it.
    """
    with usable(folder):
        folder = Path(os.path.realpath(folder))  # a link may name a folder that does not exist yet
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = _open(folder / _LOCK)
    try:
        with lock:
            if not _acquire(lock) or not _is_still_there(lock, folder / _LOCK):  # removed by another process
                raise ConfigError(
                    f"another process uses the run folder {folder}; wait until it ends, or choose another folder"
                )
            try:
                yield
            finally:
                with suppress(OSError):  # Windows cannot remove an open file
                    (folder / _LOCK).unlink()
    finally:
        _remove_if_empty(missing)


@contextmanager
def waiting_for(path: Path, keep_waiting: Callable[[], bool]) -> Iterator[bool]:
    """Create and lock the file `path`, waiting while `keep_waiting()`; yields whether it is locked.

    Raises ConfigError if `path` is not a regular file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as lock:
        while not (is_ours := _acquire(lock)) and keep_waiting():
            time.sleep(_PAUSE)
        yield is_ours


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Raise errors of the operating system about `folder` as ConfigError, except for a full disk."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"{folder} cannot be a run folder: {error.strerror or error}; choose another folder"
        ) from error


def _open(path: Path) -> IO[str]:
    """The file of a lock, whose content is neither read nor changed."""
    return os.fdopen(open_own(path), "r+")


def _acquire(lock: IO[str]) -> bool:
    """Lock the open file; True also where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_still_there(lock: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
