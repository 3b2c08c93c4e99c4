"""A lock that allows one process in a run folder; the operating system releases it when the process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from qpeft.errors import ConfigError
from qpeft.files import is_disk_full

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against other processes; it is removed if the block leaves it empty.

    Without effect where the platform or the file system has no locks.

    Raises:
        ConfigError: the folder cannot be created, or another process has locked it.
    """
    with usable(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    try:
        with lock:
            _acquire(lock, folder)
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file
                    (folder / _LOCK).unlink()
    finally:
        _remove_if_empty(missing)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Raise errors of the operating system about `folder` as ConfigError, except for a full disk."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"{folder} cannot be a run folder: {error.strerror or error}; name another") from error


def _acquire(lock: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat())
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    except OSError:  # a file system without locks
        return
    if not is_ours:  # locked, or just removed by the process that had locked it
        raise ConfigError(f"another process uses the run folder {folder}; wait until it ends, or name another folder")


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
