"""Revisions of the compact adapters in a folder: `ana` is the present one, `ana@DIGEST` a certain one.

users/ana/                the present revision
users/.ana@3f2c9a04b1d7/  an earlier one, kept when it was served or replaced by `qpeft rollback`

A digest is the start of a SHA-256 of the adapter's two files, so equal content is one revision.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from qpeft.core.checkpoint import CONFIG, WEIGHTS
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import file_hash
from qpeft.folders import replace_folder
from qpeft_lab.base_files import TEMPLATE

_N_DIGITS = 12  # as in _REVISION
_LONGEST = 200  # bytes of a name; file systems allow 255, and temporary names are longer
_BESIDE = (TEMPLATE, "task.json")  # which an adapter may have
_REVISION = re.compile(r"(?P<name>.+)@(?P<digest>[0-9a-f]{12})")


def revision(folder: Path) -> str:
    """The digest of the adapter in a folder. Raises CheckpointError if a file cannot be read."""
    try:
        hashes = [file_hash(folder / name) for name in (CONFIG, WEIGHTS)]
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read ({error.strerror}); save the adapter again"
        ) from error
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:_N_DIGITS]


def find(adapters: Path, name: str) -> Path | None:
    """The folder of `name` or `name@DIGEST` in the folder `adapters`; None if there is none."""
    folder = _child(adapters, name)
    match = _REVISION.fullmatch(name)
    if folder is not None or match is None:
        return folder
    for folder in (
        _child(adapters, match["name"]),
        _child(adapters, match["name"], f"@{match['digest']}"),
    ):
        if folder is not None:
            # a damaged one, or one that somebody changed, has another digest
            with suppress(CheckpointError):
                if revision(folder) == match["digest"]:
                    return folder
    return None


def keep(folder: Path, digest: str) -> Path:
    """The folder with a copy of the adapter, which has this digest. Raises CheckpointError if it
    has another one by now.
    """
    target = folder.with_name(f".{folder.name}@{digest}")
    try:
        is_whole = revision(target) == digest
        is_whole &= all((target / name).is_file() == (folder / name).is_file() for name in _BESIDE)
    except CheckpointError:  # none, or a damaged one
        is_whole = False
    if not is_whole:
        with replace_folder(target, modes_of=folder) as copy:
            _copy(folder, copy)
            if revision(copy) != digest:
                raise CheckpointError("it was replaced while it was read; ask again")
    return target


def kept(folder: Path) -> list[str]:
    """The digests of earlier revisions of the adapter, the oldest first."""
    paths = folder.parent.glob(f".{glob.escape(folder.name)}@*")
    matches = [(path.stat().st_mtime_ns, _REVISION.fullmatch(path.name)) for path in paths]
    return [match["digest"] for _, match in sorted(matches, key=lambda pair: pair[0]) if match]


def restore(folder: Path, digest: str) -> None:
    """Make an earlier revision the present one, which is kept; other files of the folder stay.
    Raises ConfigError if it is not there, or only one of the two files of the present one is;
    CheckpointError if it is damaged.
    """
    if digest not in kept(folder):
        known = ", ".join(kept(folder)) or "none"
        raise ConfigError(f"{folder} has no earlier revision {digest!r}; it has {known}")
    source = folder.with_name(f".{folder.name}@{digest}")
    if revision(source) != digest:
        raise CheckpointError(f"{source} was changed, its content has another digest; remove it")
    present = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if len(present) == 1:
        raise ConfigError(
            f"{folder} has {present[0]}, and no whole adapter, so it cannot be kept; move"
            f" {present[0]} away"
        )
    if present:
        keep(folder, revision(folder))
    with replace_folder(Path(os.path.realpath(folder))) as new:  # a link stays one
        if folder.is_dir():
            shutil.copytree(folder, new, symlinks=True, dirs_exist_ok=True)
        for name in _BESIDE:  # of the one that is replaced
            (new / name).unlink(missing_ok=True)
        _copy(source, new)


def _copy(source: Path, target: Path) -> None:
    """Copy an adapter, and what belongs to it."""
    for name in (CONFIG, WEIGHTS, *_BESIDE):
        if name not in _BESIDE or (source / name).is_file():
            shutil.copy(source / name, target)


def _child(adapters: Path, name: str, digest: str = "") -> Path | None:
    """The folder of this name in `adapters`, or of its earlier revision; None for what is no name."""
    hidden = "." if digest else ""
    try:
        n_bytes = len(os.fsencode(name))
    except UnicodeEncodeError:
        return None
    if Path(name).name != name or name[:1] in ("", ".") or n_bytes > _LONGEST:
        return None
    folder = adapters / f"{hidden}{name}{digest}"
    return folder if folder.is_dir() else None
