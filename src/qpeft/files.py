"""Files that are either whole or absent: a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

T = TypeVar("T")
_NUMBERS: dict[Any, tuple[type, ...]] = {"int": (int,), "float": (int, float), "float | None": (int, float, NoneType)}
_UNFINISHED = ".unfinished"
_DISK_FULL = ("no space left on device", "disk quota exceeded", "unexpected pos", "file write failed")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Give a temporary neighbour to write, and put it in the place of `target`, on the disk, if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are private
        sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError if it is none, OSError if it cannot be read."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, whose RecursionError becomes the ValueError that everything else is which is no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def filled(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass with these fields, as JSON holds them. Raises TypeError for one that is no number but should be."""
    for field in fields(kind):  # type: ignore[arg-type]
        allowed = _NUMBERS.get(field.type)
        if allowed and field.name in values and type(values[field.name]) not in allowed:
            raise TypeError(f"{field.name} is {values[field.name]!r}")
    return kind(**values)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and put it in the place of `target`, on the disk, if the block succeeds.

    An older `target` stays untouched until the new one is complete; it is set aside under a hidden name for the
    instant between two renames, and put back if anything but a kill happens there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_folder(target, "")
    temporary.chmod(0o755)
    try:
        yield temporary
        sync_all(temporary)
        if target.exists():
            old = _hidden_folder(target, "old.")
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
    sync(target.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left below `folder` of files and folders that were being written; nobody may write there."""
    for path in list(folder.rglob(f".*{_UNFINISHED}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # gone with a folder


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it. A kill leaves it whole, or parts that nobody takes for it."""
    aside = _hidden_folder(folder, "old.")
    folder.replace(aside / folder.name)
    shutil.rmtree(aside)


def sync_all(folder: Path) -> None:
    """Wait until a folder, with all that is below it, is on the disk: a power cut may then come."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names where the system can, is on the disk."""
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not is_folder:
            raise


def _hidden_folder(target: Path, what: str) -> Path:
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.{what}", suffix=_UNFINISHED))


def is_disk_full(error: BaseException) -> bool:
    """True for the operating system's error, and for what safetensors and torch make of it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)
