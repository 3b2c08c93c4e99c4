"""One process to a run folder, by a lock that the operating system drops with its holder."""

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
def sole_user(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other processes from it; removed again if the block leaves it empty.

    Raises ConfigError if there can be no such folder, or if another process has it. Where the platform or the
    file system has no locks, nobody is kept away.
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
    """Turn what the operating system says against `folder` into ConfigError, but for a full disk."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"{folder} cannot be a run folder: {error.strerror or error}; name another place") from error


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
    if not is_ours:  # held, or removed just now by the one that held it
        raise ConfigError(f"another process is training in {folder}; wait until it ends, or name another folder")


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
