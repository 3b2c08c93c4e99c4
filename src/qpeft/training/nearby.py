"""Paths that are not there: told from hub ids, and explained."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


def is_path(name: str) -> bool:
    """True if a name can only mean a path: it starts like one, or has more slashes than a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def explain_missing(name: str) -> str:
    """What is missing, where, and which names there are near it: `/data has no 'trian.txt'; near it: train.txt`."""
    path = Path(name).expanduser().absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    wanted = path.relative_to(folder).parts[0]
    near = get_close_matches(wanted, [entry.name for entry in folder.iterdir()], n=3, cutoff=0.5)
    return f"{folder} has no {wanted!r}" + (f"; near it: {', '.join(near)}" if near else "")
