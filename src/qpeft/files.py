"""Atomic writing of files and folders: a crash at any moment leaves either the old content or the new."""

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
    """Yield a temporary file in the same folder; after the block it replaces `target` and is synced to disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError if it is not valid JSON, OSError if it cannot be read."""
    if not path.is_file():  # reading a pipe would block
        raise ValueError("it is not a file")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, but a RecursionError is raised as ValueError, like other invalid JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def filled(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from the values in a JSON file. Raises TypeError if a numeric field has another type."""
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
    """Yield a temporary folder to fill; after the block it replaces `target` and is synced to disk.

    An existing `target` is not touched until the new folder is complete. Between two renames it has a hidden name; it
    is restored if an exception occurs there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_folder(target, "")
    umask = _umask()
    temporary.chmod(0o777 & ~umask)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():  # safetensors' files are private
                path.chmod(0o666 & ~umask)
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
    """Remove unfinished files of a killed process below `folder`. No other process may write there."""
    for path in list(folder.rglob(f".*{_UNFINISHED}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # perhaps removed with its folder


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content. It is renamed first: after a kill it is complete, or has a hidden name."""
    hidden = _hidden_folder(folder, "old.")
    folder.replace(hidden / folder.name)
    shutil.rmtree(hidden)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything below it is on disk, so that it survives a power failure."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries where the system supports it, is on disk."""
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


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _hidden_folder(target: Path, what: str) -> Path:
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.{what}", suffix=_UNFINISHED))


def is_disk_full(error: BaseException) -> bool:
    """True for the error of the operating system, and for those that safetensors and torch raise for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)
