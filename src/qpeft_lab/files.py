"""Files of runs and studies: JSON that anyone may have written, lines that are appended, locks,
what a kill leaves.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import UNFINISHED, hidden_folder, parse_json, whole_lines

RUN_AGAIN = "run the same command again"  # in messages: what to do after the cause is removed
SEAL = "seal"  # the field of a sealed JSON object
_OWN_NAME = re.compile(r"\..*\.[a-f0-9]{8}" + re.escape(UNFINISHED))
# Numbers as people write them: in YAML 1.1, 1e-3 is a text, 1:30 is 90, and 010 is 8.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(\d[\d_]*\.\d*|\.\d+|(\d+\.?\d*|\.\d+)[eE][-+]?\d+|\.inf)$|\.nan$", re.IGNORECASE
    ),
}
_DISK_FULL = (
    # of the system
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    # of torch.save
    "unexpected pos",
    "file write failed",
    "basic_ios::clear",
)


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Create `folder` and lock it against other processes, by its file `.lock`.

    Raises ConfigError if another process keeps the folder locked for `patience` seconds.
    """
    from filelock import FileLock, Timeout  # which imports asyncio

    folder = Path(os.path.realpath(folder))  # a link may name a folder that does not exist yet
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ".lock").is_dir():
        raise ConfigError(f"{folder / '.lock'} is a folder; remove it, or choose another folder")
    try:
        with FileLock(folder / ".lock", timeout=patience):
            yield
    except Timeout as error:
        raise ConfigError(
            f"another process uses the run folder {folder}; wait until it ends, or choose another"
        ) from error


def parse_yaml(text: str) -> Any:
    """The value in YAML, with numbers as people write them. Raises ValueError, also for a key that
    occurs twice and for a value that contains itself.
    """
    import yaml

    unfinished: list[Any] = []  # anchors of the values around the present one

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) and event.anchor in unfinished:
                raise ValueError(f"the value with the anchor {event.anchor} contains itself")
            unfinished.append(getattr(event, "anchor", None))
            node = super().compose_node(parent, index)
            unfinished.pop()
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if key.value != "<<"]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(
                    f"{twice[0]} occurs twice in line {node.start_mark.line + 1} and below"
                )
            return node

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern in _NUMBERS.items():
        Loader.add_implicit_resolver(tag, pattern, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_yaml(path: Path | Traversable, example: str) -> dict[str, Any]:
    """The fields in a YAML file. Raises ConfigError if it cannot be read, or has no fields, such as
    the `example`.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has no fields, such as {example}")
    return content


def json_line(value: Any) -> str:
    """A line of JSON, in which numbers that are not finite are null."""
    read = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    return json.dumps(read) + "\n"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object `value` with a seal: a hash of its fields, by which `unsealed` notices an
    edit.
    """
    content: dict[str, Any] = json.loads(json_line(value))
    return content | {SEAL: _hash(content)}


def unsealed(value: Mapping[str, Any], must_be_sealed: bool = False) -> dict[str, Any]:
    """The fields of a JSON object, without its seal. Files of qpeft 0.2 have none.

    Raises ValueError if a field was edited, or a seal that `must_be_sealed` is missing.
    """
    content = dict(value)
    seal = content.pop(SEAL, None)
    if seal is None and must_be_sealed:
        raise ValueError("it has no seal, so it was edited since it was written")
    if seal not in (None, _hash(content)):
        raise ValueError("a field was edited since it was written")
    return content


def _hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json_lines(
    path: Path, is_valid: Callable[[Any], bool], remedy: str
) -> list[dict[str, Any]]:
    """The complete lines of a file, without an incomplete last one (`whole_lines`). Without a file
    there are none.

    Raises CheckpointError, with the `remedy`, for a line that is no JSON, or for which `is_valid`
    raises or is false.
    """
    complete = whole_lines(path.read_bytes()).split(b"\n")[:-1] if path.exists() else ()
    rows = []
    for number, line in enumerate(complete, start=1):
        try:
            rows.append(parse_json(line))
            if not is_valid(rows[-1]):
                raise ValueError("a field has no valid value")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged in line {number} ({error}); {remedy}"
            ) from error
    return rows


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of a killed process below `folder`. No other process may write there."""
    for path in [
        path for path in folder.rglob(f".*{UNFINISHED}") if _OWN_NAME.fullmatch(path.name)
    ]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # perhaps removed with its folder


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content. It is renamed first: after a kill it is complete, or has a
    hidden name.
    """
    hidden = hidden_folder(folder)
    folder.replace(hidden / folder.name)
    shutil.rmtree(hidden)


def is_disk_full(error: BaseException | None) -> bool:
    """True for the errors of the operating system, and for those that safetensors and torch raise
    for them.

    A limit for the size of files counts as well.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(phrase in str(error).lower() for phrase in _DISK_FULL)


def output_file(path: Path, is_folder: bool = False) -> Path:
    """The file to write, or the folder to fill, for an output that the user named; links are
    followed.

    Raises ConfigError, before any work, if it cannot be written. A full disk is not the fault of
    the path.
    """
    real = Path(os.path.realpath(path))
    try:
        if real.exists() and real.is_dir() != is_folder:
            raise ConfigError(
                f"{path} is {'a file; give a folder' if is_folder else 'a folder; give a file'}"
            )
        if real.is_symlink():
            raise ConfigError(f"{path} is a link to itself; give another place")
        place = real if is_folder else real.parent
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        hidden_folder(existing / (place.name or "root")).rmdir()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; give another place"
        ) from error
    return real
