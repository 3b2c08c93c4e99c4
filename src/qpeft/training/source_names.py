"""The name of a data source: a path, a hub id or a built-in text, with a configuration and a split where it has them.

text.txt   photos   name   name:config   name:config:split   name::split   folder::split   glue/task   glue/task:folder
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from qpeft.errors import DataError
from qpeft.local_paths import explain_missing, has_drive, looks_like_path
from qpeft.training.glue import HUB, GlueTask, find_glue

# in a package above this one, therefore imported only when used
BUILT_IN = {"numpy-docs": "qpeft.demo.corpus:numpy_docs", "stdlib-docs": "qpeft.demo.corpus:stdlib_docs"}
TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".parquet", ".tsv")

_LOCAL_SUFFIXES = {*TEXT_SUFFIXES, ".npz"}


class SourceName(NamedTuple):
    """The parts of a source's name."""

    name: str  # path, hub id or built-in text
    config: str | None = None
    split: str | None = None
    glue: GlueTask | None = None  # the task of GLUE, whose splits and classes the source has

    @property
    def is_local(self) -> bool:
        """True if the name is a local path, whether or not it exists."""
        path = Path(self.name).expanduser()
        return path.exists() or looks_like_path(self.name) or path.suffix.lower() in _LOCAL_SUFFIXES

    @property
    def is_whole(self) -> bool:
        """Whether neither a configuration nor a split is named."""
        return self.config is None and self.split is None

    @property
    def path(self) -> Path:
        """The path of a local source. Raises DataError if it does not exist."""
        path = Path(self.name).expanduser()
        if not path.exists():
            raise DataError(f"no file or folder {self.name}: {explain_missing(self.name)}")
        return path


def parse_source(source: str) -> SourceName:
    """The parts of `source`. A path may contain colons: the longest part that exists is the path.

    Raises DataError for an unknown task of GLUE.
    """
    if (glue := find_glue(source)) is not None:
        _, _, local = source.partition(":")
        return (parse_source(local) if local else SourceName(HUB, glue.config))._replace(glue=glue)
    path = Path(source).expanduser()
    first = source.find(":", 2 if has_drive(source) else 0)
    if first < 0 or path.exists() or path.suffix.lower() in _LOCAL_SUFFIXES:
        return SourceName(source)
    colons = [place for place in range(first, len(source)) if source[place] == ":"]
    end = next((place for place in reversed(colons) if Path(source[:place]).expanduser().exists()), first)
    config, _, split = source[end + 1 :].partition(":")
    return SourceName(source[:end], config or None, split or None)
