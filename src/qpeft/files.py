"""Atomic writing of files: a crash at any moment leaves either the old content or the new."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"  # suffix of a temporary file or folder, which a kill leaves


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError as `parse_json`, OSError if it cannot be read."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """The content of JSON. Raises ValueError if it is not valid, or an object has a key twice."""
    return json.loads(text, object_pairs_hook=unique_keys)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON with these pairs. Raises ValueError for a key that occurs twice: readers
    differ in which of its values they take.
    """
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {name!r} occurs twice; remove one of them")
        made[name] = value
    return made


def whole_lines(data: bytes) -> bytes:
    """`data`, lines of JSON objects, without an incomplete last one, which a kill leaves.

    A last line that lacks only its line break is complete: no part of an object is an object.
    """
    end = data.rfind(b"\n") + 1
    try:
        json.loads(data[end:])
    except (ValueError, RecursionError):
        return data[:end]
    return data + b"\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_json(value: Any) -> Any:
    """`value` as read back from JSON: sets as sorted lists, tuples as lists, enums as their values."""
    return json.loads(json.dumps(value, default=sorted))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_file(target: Path, *, is_new: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder, to be written; after the block it
    replaces `target`.

    It is synced to disk. A link is replaced and not followed. Raises FileExistsError if `is_new` and
    somebody has made the file in the meantime.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden(target)
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        sync(temporary)
        if is_new:
            _rename_to_new(temporary, target)
        else:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file. Raises FileExistsError if `target` exists."""
    try:
        target.hardlink_to(temporary)
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        target.touch(exist_ok=False)
        temporary.replace(target)


def apply_umask(folder: Path) -> None:
    """Give the files below `folder` its permissions, which the umask left: those of safetensors are
    private.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(folder.stat().st_mode & 0o666)


def copy_modes(source: Path, folder: Path) -> None:
    """Give a folder, and the files below it that are also in `source`, the permissions they have
    there: what is private stays private.
    """
    for path in folder.rglob("*"):
        before = source / path.relative_to(folder)
        if before.is_file() and path.is_file() and not path.is_symlink():
            shutil.copymode(before, path)
    shutil.copymode(source, folder)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything below it is on disk, so that it survives a power failure."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries where the system supports it, is on disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():
            raise


def hidden_folder(target: Path) -> Path:
    """A new folder next to `target`, whose name begins with a dot."""
    folder = hidden(target)
    folder.mkdir()
    return folder


def hidden(target: Path) -> Path:
    """A new hidden name next to `target`."""
    return target.with_name(f"{hidden_stem(target)}.{secrets.token_hex(4)}{UNFINISHED}")


def hidden_stem(target: Path) -> str:
    """What the hidden names of `target` begin with, and those of no other file; names are limited
    to 255 bytes.
    """
    name = target.name
    if len(name) > 50:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:10]}"
    return f".{name}"
