"""Local paths: distinguished from hub ids, and the message for a path that does not exist."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows


def looks_like_path(name: str) -> bool:
    """True if a name can only be a path: it starts like one, or has more slashes than a hub id."""
    return name.startswith((".", "/", "~")) or has_drive(name) or name.count("/") > 1


def has_drive(name: str) -> bool:
    """True if `name` starts with a drive of Windows: `C:\\data`."""
    return _DRIVE.match(name) is not None


def explain_missing(name: str) -> str:
    """What is missing, where, and the nearest names: `/data has no 'trian.txt'; similar: train.txt`."""
    path = Path(name).expanduser().absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    wanted = path.relative_to(folder).parts[0]
    near = get_close_matches(wanted, [entry.name for entry in folder.iterdir()], n=3, cutoff=0.5)
    return f"{folder} has no {wanted!r}" + (f"; similar: {', '.join(near)}" if near else "")
