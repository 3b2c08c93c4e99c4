"""Atomic writing of files and folders: a crash at any moment leaves either the old content or the new."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from qpeft.errors import RUN_AGAIN, ConfigError

T = TypeVar("T")
_NUMBERS: dict[Any, tuple[type, ...]] = {"int": (int,), "float": (int, float), "float | None": (int, float, NoneType)}
_UNFINISHED = ".unfinished"
_OWN_NAME = re.compile(r"\..*\.[a-z0-9_]{8}\.unfinished")  # of a temporary file or folder; the 8 are those of tempfile
_DISK_FULL = (
    *("no space left on device", "disk quota exceeded", "file too large"),  # the system
    *("unexpected pos", "file write failed", "basic_ios::clear"),  # torch.save
)
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # and no waiting for the reader of a pipe


def output_file(path: Path) -> Path:
    """The file to write for an output that the user named; links are followed.

    Raises ConfigError, before any work, if it cannot be written: a named pipe or a device must not be replaced.
    """
    return _output(path, stat.S_IFREG)


def output_folder(path: Path) -> Path:
    """The folder to fill for an output that the user named, as `output_file`."""
    return _output(path, stat.S_IFDIR)


def _output(path: Path, wanted: int) -> Path:
    give = f"give {'a folder' if wanted == stat.S_IFDIR else 'a file'}"
    try:
        found = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = 0
    except OSError as error:  # a loop of links, a name that is too long
        raise ConfigError(f"{path} cannot be written: {error.strerror}; {give} elsewhere") from error
    if found not in (0, wanted):
        raise ConfigError(f"{path} is a {_KINDS.get(found, 'special file')}; {give}")
    real = Path(os.path.realpath(path))
    place = real if found == stat.S_IFDIR else next(parent for parent in real.parents if os.path.lexists(parent))
    if not place.is_dir():
        raise ConfigError(f"{path} cannot be written: {place} is a file; {give} elsewhere")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written: no permission to write in {place}; {give} elsewhere")
    try:
        _hidden_folder(place / real.name, "").rmdir()
    except OSError as error:  # a read-only or virtual file system, also for root
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"{path} cannot be written: nothing can be created in {place} ({error.strerror}); {give} elsewhere"
        ) from error
    return real


def open_own(path: Path, flags: int = 0) -> int:
    """A descriptor of a file in a folder of qpeft, created if it is missing, for reading and writing.

    A link is not followed: it would let a folder from someone else change a file elsewhere. Raises ConfigError for
    anything but a regular file.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | flags, 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{path} is not a regular file; remove it and {RUN_AGAIN}") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ConfigError(f"{path} is not a regular file; remove it and {RUN_AGAIN}")
    return handle


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder; after the block it replaces `target` and is synced to disk.

    Raises ConfigError if `target` is neither a regular file nor a link, which is replaced and not followed.
    """
    _check_replaceable(target, stat.S_IFREG)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_prefix(target), suffix=_UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_mode(target, 0o666))  # mkstemp's files are private
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
    is restored if an exception occurs there. Raises ConfigError if `target` is neither a folder nor a link, which is
    replaced and not followed.
    """
    _check_replaceable(target, stat.S_IFDIR)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_folder(target, "")
    temporary.chmod(_mode(target, 0o777) | temporary.stat().st_mode & stat.S_ISGID)
    try:
        yield temporary
        apply_umask(temporary)
        sync_all(temporary)
        if os.path.lexists(target):
            old = _hidden_folder(target, "old.")
            try:
                target.replace(old / target.name)
                temporary.replace(target)
            finally:
                if not os.path.lexists(target):
                    (old / target.name).replace(target)
                shutil.rmtree(old)
        else:
            temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)


def apply_umask(folder: Path) -> None:
    """Give the files below `folder` the permissions of the umask: those of safetensors are private."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~_umask())


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of a killed process below `folder`. No other process may write there."""
    for path in [path for path in folder.rglob(f".*{_UNFINISHED}") if _OWN_NAME.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
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


def _check_replaceable(target: Path, wanted: int) -> None:
    if os.path.lexists(target) and stat.S_IFMT(target.lstat().st_mode) not in (wanted, stat.S_IFLNK):
        _output(target, wanted)


def _mode(target: Path, allowed: int) -> int:
    """The permissions of an existing target, or those that the umask leaves."""
    is_kept = target.exists() and not target.is_symlink()
    return stat.S_IMODE(target.stat().st_mode) if is_kept else allowed & ~_umask()


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _hidden_folder(target: Path, what: str) -> Path:
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{_prefix(target)}{what}", suffix=_UNFINISHED))


def _prefix(target: Path) -> str:
    """The beginning of a hidden name for `target`; short, because names are limited to 255 bytes."""
    return f".{target.name[:50]}."


def is_disk_full(error: BaseException) -> bool:
    """True for the errors of the operating system, and for those that safetensors and torch raise for them.

    A limit for the size of files counts as well.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)
