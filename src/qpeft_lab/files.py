"""Files of runs and studies: JSON that anyone may have written, files that are appended to, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError
from qpeft.files import UNFINISHED, hidden_folder

RUN_AGAIN = "run the same command again"  # in messages: what to do after the cause is removed
_OWN_NAME = re.compile(r"\..*\.[a-f0-9]{8}" + re.escape(UNFINISHED))
_DISK_FULL = (
    *("no space left on device", "disk quota exceeded", "file too large"),  # the system
    *("unexpected pos", "file write failed", "basic_ios::clear"),  # torch.save
)


def open_own(path: Path, flags: int = 0) -> int:
    """A descriptor of a file in a folder of qpeft, created if it is missing, for reading and writing.

    A link is not followed: it would let a folder from someone else change a file elsewhere. Raises OSError for one.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | flags, 0o666)


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, but a RecursionError is raised as ValueError, like other invalid JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of a killed process below `folder`. No other process may write there."""
    for path in [path for path in folder.rglob(f".*{UNFINISHED}") if _OWN_NAME.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # perhaps removed with its folder


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content. It is renamed first: after a kill it is complete, or has a hidden name."""
    hidden = hidden_folder(folder)
    folder.replace(hidden / folder.name)
    shutil.rmtree(hidden)


def is_disk_full(error: BaseException | None) -> bool:
    """True for the errors of the operating system, and for those that safetensors and torch raise for them.

    A limit for the size of files counts as well.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)


def output_file(path: Path) -> Path:
    """The file to write for an output that the user named; links are followed.

    Raises ConfigError, before any work, if it cannot be written.
    """
    real = Path(os.path.realpath(path))
    with _refused(path):
        if real.is_dir():
            raise ConfigError(f"{path} is a folder; give a file")
        _try_to_write(real.parent)
    return real


def output_folder(path: Path) -> Path:
    """The folder to fill for an output that the user named; links are followed.

    Raises ConfigError, before any work, if it cannot be written.
    """
    real = Path(os.path.realpath(path))
    with _refused(path):
        if real.exists() and not real.is_dir():
            raise ConfigError(f"{path} is a file; give a folder")
        _try_to_write(real)
    return real


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Errors of the system become a ConfigError, but for a full disk, which is not the fault of the path."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; give another place") from error


def _try_to_write(place: Path) -> None:
    """Create and remove a folder in `place`, or in the lowest folder above it that exists."""
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    hidden_folder(existing / place.name).rmdir()
