"""Checkpoints of a run, which are used only if complete.

The Trainer writes `checkpoint-STEP` file by file. Then a file `complete` inside it is written with
the SHA-256 of each file (`sha256sum --check complete` verifies it). A folder without this file, or
without a file listed there, was left by a kill or a full disk, and is removed.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from qpeft.files import apply_umask, file_hash, sync_all, write_text
from qpeft_lab.files import remove_folder

KEPT = 2

_MARKER = "complete"
_BETWEEN = "  "


def step_of(checkpoint: Path) -> int:
    """The number of completed steps in a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete when all its files are on disk; then `prune`."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    apply_umask(checkpoint)
    sync_all(checkpoint)
    lines = [
        f"{file_hash(file)}{_BETWEEN}{file.relative_to(checkpoint).as_posix()}\n" for file in files
    ]
    write_text(checkpoint / _MARKER, "".join(lines))
    prune(checkpoint.parent)


def last_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose files have their SHA-256; damaged ones after it are removed, with
    a warning.
    """
    for checkpoint in reversed(prune(folder)):
        if all(
            file_hash(checkpoint / name) == digest for name, digest in _hashes(checkpoint).items()
        ):
            return checkpoint
        warnings.warn(
            f"{checkpoint} is damaged and was removed; the run resumes from before it", stacklevel=2
        )
        remove_folder(checkpoint)
    return None


def prune(folder: Path) -> list[Path]:
    """Remove incomplete checkpoints, and all but the last two complete ones, which are returned,
    the oldest first.
    """
    paths = list(folder.glob("checkpoint-*"))
    checkpoints = [path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name)]
    checkpoints.sort(key=step_of)
    kept = [checkpoint for checkpoint in checkpoints if _is_complete(checkpoint)][-KEPT:]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)
    return kept


def _is_complete(checkpoint: Path) -> bool:
    names = _hashes(checkpoint)
    return bool(names) and all((checkpoint / name).is_file() for name in names)


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of each file by its name; empty for an incomplete checkpoint."""
    marker = checkpoint / _MARKER
    try:
        lines = marker.read_text(encoding="utf-8").splitlines() if marker.is_file() else []
    except (OSError, ValueError):  # a damaged disk
        return {}
    parts = [line.partition(_BETWEEN) for line in lines]
    return {name: digest for digest, _, name in parts}
