"""Checkpoints that count only when they are whole.

The Trainer writes `checkpoint-STEP` file by file. A marker inside, written last, names them with their SHA-256 and
makes it count (`sha256sum --check complete` reads it); a folder without it, or without a file that it names, is what a
kill or a full disk left, and is removed.
"""

from __future__ import annotations

import re
from pathlib import Path

from qpeft.files import file_hash, remove_folder, sync_all, write_text

KEPT = 2

_MARKER = "complete"
_BETWEEN = "  "


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
    lines = [f"{file_hash(file)}{_BETWEEN}{file.relative_to(checkpoint).as_posix()}\n" for file in files]
    write_text(checkpoint / _MARKER, "".join(lines))
    prune(checkpoint.parent)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that counts."""
    whole = [checkpoint for checkpoint in _all(folder) if _is_whole(checkpoint)]
    return whole[-1] if whole else None


def find_spoiled(checkpoint: Path) -> str | None:
    """A file that is not what was written, if there is one: torch would take a flipped bit for a number."""
    return next((name for name, digest in _named(checkpoint).items() if file_hash(checkpoint / name) != digest), None)


def prune(folder: Path) -> None:
    """Remove every checkpoint that does not count, and all but the last two of those that do."""
    found = _all(folder)
    kept = [checkpoint for checkpoint in found if _is_whole(checkpoint)][-KEPT:]
    for checkpoint in found:
        if checkpoint not in kept:
            remove_folder(checkpoint)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return all((checkpoint / name).is_file() for name in _named(checkpoint))
    except (OSError, ValueError):  # no marker, or no text: what a broken disk made of it
        return False


def _named(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    marker = checkpoint / _MARKER
    if not marker.is_file():
        raise FileNotFoundError(marker)
    parts = [line.partition(_BETWEEN) for line in marker.read_text(encoding="utf-8").splitlines()]
    return {name: digest for digest, _, name in parts}


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    found = folder.glob("checkpoint-*") if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)
