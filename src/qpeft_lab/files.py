"""Files of runs and studies: JSON that anyone may have written, files that are appended to, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
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


def output_file(path: Path, is_folder: bool = False) -> Path:
    """The file to write for an output that the user named; links are followed.

    Raises ConfigError, before any work, if it cannot be written. A full disk is not the fault of the path.
    """
    real = Path(os.path.realpath(path))
    try:
        if real.exists() and real.is_dir() != is_folder:
            raise ConfigError(f"{path} is {'a file; give a folder' if is_folder else 'a folder; give a file'}")
        place = real if is_folder else real.parent
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        hidden_folder(existing / place.name).rmdir()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; give another place") from error
    return real


def output_folder(path: Path) -> Path:
    """The folder to fill, as `output_file`."""
    return output_file(path, is_folder=True)


def finite(value: Any) -> Any:
    """`value` as JSON holds it: NaN and infinity, which it lacks, are null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
