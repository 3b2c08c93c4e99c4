"""Names of data sources: a path, a hub id or a built-in text, with a configuration and a split where
it has them:

    text.txt   photos   name   name:config   name:config:split   name::split   glue/task   glue/task:folder
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from qpeft.errors import DataError
from qpeft_lab.data.files import READERS
from qpeft_lab.data.glue import HUB, GlueTask, find_glue
from qpeft_lab.user_files import explain_missing, looks_like_path

# in a package above this one, therefore imported only when used
BUILT_IN = {
    "numpy-docs": "qpeft_lab.demo.corpus:numpy_docs",
    "stdlib-docs": "qpeft_lab.demo.corpus:stdlib_docs",
}


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
        return path.exists() or looks_like_path(self.name) or path.suffix.lower() in READERS

    @property
    def is_whole(self) -> bool:
        """Whether neither a configuration nor a split is named."""
        return self.config is None and self.split is None

    @property
    def id(self) -> str:
        """As `datasets` takes it: a hub id, or the path of a folder."""
        return str(self.path) if self.is_local else self.name

    @property
    def path(self) -> Path:
        """The path of a local source. Raises DataError if it does not exist."""
        path = Path(self.name).expanduser()
        if not path.exists():
            raise DataError(f"no file or folder {self.name}: {explain_missing(self.name)}")
        if not path.is_file() and not path.is_dir():
            raise DataError(
                f"{self.name} is neither a file nor a folder, but a device; give a file"
            )
        return path


def parse_source(source: str) -> SourceName:
    """The parts of `source`; a path that exists has no others. Raises DataError for an unknown task
    of GLUE.
    """
    if (glue := find_glue(source)) is not None:
        _, _, local = source.partition(":")
        return (parse_source(local) if local else SourceName(HUB, glue.config))._replace(glue=glue)
    path = Path(source).expanduser()
    if path.exists() or path.suffix.lower() in READERS:
        return SourceName(source)
    name, config, split = (*source.split(":", 2), "", "")[:3]
    return SourceName(name, config or None, split or None)


def rows_of(source: str, sha256: str | None) -> tuple[str, str | None, str | None]:
    """What the names of equal rows have in common, also of a copy, or another path of a file: the
    content, and the part of it. `sha256` is the `content_hash` of the source.
    """
    name = parse_source(source)
    return sha256 or name.name, name.config, name.split


def part_of(source: str) -> tuple[str | None, str | None, GlueTask | None]:
    """What of its content a source names: the configuration, the split and the task of GLUE."""
    name = parse_source(source)
    return name.config, name.split, name.glue
