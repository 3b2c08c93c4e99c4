"""Files that are either whole or absent: a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DISK_FULL = ("no space left on device", "disk quota exceeded", "unexpected pos", "file write failed")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: to a neighbour first, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's files are private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and put it in the place of `target` if the block succeeds.

    An older `target` stays untouched until the new one is complete; it is set aside under a hidden name for the
    instant between two renames, and put back if anything but a kill happens there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        _sync(temporary)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            try:
                target.replace(old / target.name)
                temporary.replace(target)
            finally:
                if not target.exists():
                    (old / target.name).replace(target)
                shutil.rmtree(old)
        else:
            temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def is_disk_full(error: BaseException) -> bool:
    """True for the operating system's error, and for what safetensors and torch make of it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)
