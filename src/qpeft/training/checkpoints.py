"""Checkpoints that count only when they are whole.

The Trainer writes `checkpoint-STEP` file by file. A marker inside, written last, names them and makes it count; a
folder without it, or without a file that it names, is what a kill or a full disk left, and is removed.
"""

from __future__ import annotations

import re
from pathlib import Path

from qpeft.files import remove_folder, sync_all, write_text

KEPT = 2

_MARKER = "complete"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the Trainer puts the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The number of steps done in a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole, with all its files on the disk; then `prune`."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sync_all(checkpoint)
    write_text(checkpoint / _MARKER, "".join(f"{file.relative_to(checkpoint).as_posix()}\n" for file in files))
    prune(checkpoint.parent)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that counts."""
    whole = [checkpoint for checkpoint in _all(folder) if _is_whole(checkpoint)]
    return whole[-1] if whole else None


def prune(folder: Path) -> None:
    """Remove every checkpoint that does not count, and all but the last two of those that do."""
    found = _all(folder)
    kept = [checkpoint for checkpoint in found if _is_whole(checkpoint)][-KEPT:]
    for checkpoint in found:
        if checkpoint not in kept:
            remove_folder(checkpoint)


def _is_whole(checkpoint: Path) -> bool:
    marker = checkpoint / _MARKER
    try:
        names = marker.read_text(encoding="utf-8").splitlines() if marker.is_file() else [_MARKER]
    except ValueError:  # no text: what a broken disk made of it
        return False
    return all((checkpoint / name).is_file() for name in names)


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    found = folder.glob("checkpoint-*") if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)
