"""Atomic replacement of folders: after a kill at any moment there is the old folder or the new one.

Names next to `target`, where HEX is random:

    .target.HEX.unfinished   the new folder, while it is filled; locked as long as its process lives
    .target.HEX.replaced     the old folder, where the system cannot swap two names in one step

`repair_folder` restores the old folder if a process was killed between two renames, and
`replace_folder` removes what killed processes have left.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qpeft.errors import ConfigError
from qpeft.files import (
    UNFINISHED,
    apply_umask,
    copy_modes,
    hidden_folder,
    hidden_stem,
    sync,
    sync_all,
)

if sys.platform != "win32":  # where the remains of killed processes stay
    import fcntl

_REPLACED = ".replaced"
# of Linux
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_locks: dict[Path, int] = {}  # handles of the unfinished folders of this process


def folder_to_replace(path: Path, replaces: Collection[str]) -> Path:
    """The folder that an output which the user named will replace; links are followed.

    Raises ConfigError if it contains other files than `replaces`, which would be lost, or if no
    folder can have this name.
    """
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise ConfigError(f"{path} is a link to itself; give another folder")
    if real == Path(real.anchor):
        raise ConfigError(f"{path} is the root of the file system; give a folder in it")
    repair_folder(real)
    names = {entry.name for entry in real.iterdir()} if real.is_dir() else set()
    others = sorted(names - {*replaces})
    if others:
        raise ConfigError(
            f"{path} contains other files ({', '.join(others[:3])}), which would be lost; give"
            " another folder"
        )
    return real


@contextmanager
def replace_folder(target: Path, *, modes_of: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; after the block it replaces `target` and is synced to disk.

    Files that were there keep their permissions, or have those in the folder `modes_of`. An existing
    `target` is not touched until the new folder is complete. A link is replaced and not
    followed; a file raises ConfigError. An error inside the block, such as that of a full disk, gets
    a note that names `target`.
    """
    if target.is_file():
        raise ConfigError(f"{target} is a file; give a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    repair_folder(target)
    _remove_remains(target)
    temporary = _locked_folder(target)
    try:
        yield temporary
        apply_umask(temporary)
        origin = target if modes_of is None else modes_of
        if os.path.lexists(origin):
            copy_modes(origin, temporary)
        sync_all(temporary)
        if os.path.lexists(target):
            old = _swap(temporary, target)
        else:
            temporary.replace(target)
            old = temporary  # which no longer exists
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        error.add_note(f"{target} was not written; if it existed, it is unchanged")
        raise
    finally:
        _unlock(temporary, target)
    _remove(old)
    sync(target.parent)


def repair_folder(target: Path) -> None:
    """Restore `target` if a process was killed after it had renamed it, and before the new folder
    had its name.
    """
    target = Path(os.path.realpath(target))
    if target.exists():
        return
    for old in _hidden_names(target, _REPLACED):
        new = old.with_name(old.name.removesuffix(_REPLACED) + UNFINISHED)
        handle = _lock(new, wait=True)  # for a process that is alive, and about to rename
        if handle is not None:
            os.close(handle)
        with suppress(OSError):  # another process has repaired or replaced it
            old.rename(target)


def _swap(temporary: Path, target: Path) -> Path:
    """Give the new folder the name of the existing one; the hidden name that the old one has now."""
    if _exchange(temporary, target):
        return temporary
    old = temporary.with_name(temporary.name.removesuffix(UNFINISHED) + _REPLACED)
    target.replace(old)
    try:
        temporary.replace(target)
    except BaseException:
        old.replace(target)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    old = os.fsencode(first)
    new = os.fsencode(second)
    return rename is not None and not rename(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE)


def _remove_remains(target: Path) -> None:
    """Remove the hidden folders that killed processes have left next to `target`."""
    remains = _hidden_names(target, UNFINISHED)
    replaced = _hidden_names(target, _REPLACED)
    if os.path.lexists(target):  # now: otherwise a process may be between its two renames
        remains += replaced
    for path in remains:
        if path.is_symlink():
            _remove(path)
            continue
        handle = _lock(path, wait=False)
        if handle is not None:
            _remove(path)
            os.close(handle)


def _hidden_names(target: Path, suffix: str) -> list[Path]:
    pattern = re.compile(re.escape(hidden_stem(target)) + r"\.[a-f0-9]{8}" + re.escape(suffix))
    parent = target.parent
    names = os.listdir(parent) if parent.is_dir() else []  # noqa: PTH208
    return [parent / name for name in names if pattern.fullmatch(name)]


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _locked_folder(target: Path) -> Path:
    """A new hidden folder next to `target`, which other processes see is in use."""
    while True:
        folder = hidden_folder(target)
        handle = _lock(folder, wait=True)
        if folder.is_dir():  # not taken for remains before it was locked
            if handle is not None:
                _locks[folder] = handle
            return folder
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """The handle of a folder that this process has locked now; None if another process has, or the
    system has no such locks.
    """
    if sys.platform == "win32":
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _unlock(temporary: Path, target: Path) -> None:
    """End the lock of an unfinished folder; if `target` is one itself, the lock is its from now on."""
    handle = _locks.pop(temporary, None)
    if handle is None:
        return
    if target in _locks:
        os.close(_locks[target])
        _locks[target] = handle
    else:
        os.close(handle)
