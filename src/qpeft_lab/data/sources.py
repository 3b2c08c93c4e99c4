"""The rows of a data source (data/names.py): of local files and folders, built-in texts, and data
sets with splits; checked when read.

A row of text is a dict in one of three formats, which its columns determine:

    {"messages": [{"role": ..., "content": ...}, ...]}   a conversation; the assistant's messages are scored
    {"prompt": str, "completion": str}                   the completion is scored
    {"text": str}                                        the whole text is scored
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from qpeft.checks import unknown
from qpeft.errors import DataError, DataWarning
from qpeft_lab.data.files import Row, cause, is_table, read_file, visible, with_class_names
from qpeft_lab.data.folders import (
    files_of,
    files_of_splits,
    image_files,
    read_splits,
    refuse_other_columns,
    refuse_splits,
)
from qpeft_lab.data.glue import LABEL
from qpeft_lab.data.names import BUILT_IN, parse_source

if TYPE_CHECKING:
    from qpeft_lab.settings import SharedSettings

# those of usual chat templates
_ROLES = {"assistant", "developer", "function", "system", "tool", "user"}
_EVALUATION_SPLITS = ("validation", "test")
_SPLITS = (
    "A split follows a second colon: NAME:CONFIG:SPLIT, or NAME::SPLIT without a configuration"
)


def load_examples(source: str, split: str, run: SharedSettings) -> list[Row]:
    """Rows of `source` in one of the three formats above, which the first row determines; `run`
    names the columns.

    `split` ("train" or "validation") selects a split of a hub data set if the source names none;
    other sources have only one. Rows with nothing to score, an empty text or no answer, are left
    out with a warning, or kept for `pad_rows`; then a .txt has a row per line.

    Raises DataError if the source is missing, unreadable or empty, or lacks the columns.
    """
    rows = load_rows(source, split, by_line=run.pad_rows)
    # options that name its columns, and column of the source -> key in the row; the last column is
    # scored
    formats: tuple[tuple[set[str], dict[str, str]], ...] = (
        (set(), {"messages": "messages"}),
        (
            {"prompt_column", "completion_column"},
            {run.prompt_column: "prompt", run.completion_column: "completion"},
        ),
        ({"text_column"}, {run.text_column: "text"}),
    )
    # a column that somebody named is read, or missing
    named = {
        option
        for option in ("text_column", "prompt_column", "completion_column")
        if getattr(run, option) != getattr(type(run), option)
    }
    fitting = [
        names for options, names in formats if named <= options and names.keys() <= rows[0].keys()
    ]
    if not fitting:
        raise DataError(
            f"{source} has the columns {', '.join(rows[0])}; required: {run.text_column!r}, or"
            f" {run.prompt_column!r} and {run.completion_column!r}, or 'messages'. text_column,"
            " prompt_column and completion_column give the names of these columns"
        )
    names, *_ = fitting
    # such as another format's, the tools of a conversation, or the system's part of a prompt
    note_unread(source, names, dict.fromkeys(column for row in rows for column in row))
    renamed = [
        _renamed(f"{source}, row {number}", row, names) for number, row in enumerate(rows, start=1)
    ]
    column, key = list(names.items())[-1]
    if key == "messages":
        scored = [
            row
            for row in renamed
            if any(message["role"] == "assistant" and message["content"] for message in row[key])
        ]
        weighted = sum(message.get("weight", 1) != 1 for row in renamed for message in row[key])
        if weighted:
            found = (
                f"{weighted} messages of {source} have a 'weight' other than 1, which is not read"
            )
            warnings.warn(
                DataWarning(f"{found}; every message of an assistant is learned"), stacklevel=2
            )
        roles = Counter(message["role"] for row in renamed for message in row[key])
        for role in roles.keys() - _ROLES:
            found = f"{roles[role]} messages of {source} have the unusual role {role!r}"
            warnings.warn(
                DataWarning(f"{found}; only those of an 'assistant' are learned"), stacklevel=2
            )
        why = "no message of an assistant"
    else:
        scored = [row for row in renamed if row[key]]
        why = f"nothing in column {column!r}"
        if key == "completion":
            note_empty(source, run.prompt_column, [row["prompt"] for row in scored])
    if run.pad_rows and scored:
        return renamed
    return kept_rows(source, scored, len(rows), why)


def begins_with_messages(source: str) -> bool:
    """Whether the first line of a .jsonl is a conversation. What cannot be read has none; other
    formats are not looked into.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        try:
            row = json.loads(lines.readline())
        except (ValueError, RecursionError):
            return False
    return isinstance(row, dict) and "messages" in row


def kept_rows(source: str, kept: list[Any], n_rows: int, why: str) -> list[Any]:
    """`kept`, with a warning if there were more rows. Raises DataError if none is kept."""
    left_out = f"{n_rows - len(kept)} of {n_rows} rows of {source} have {why}"
    if not kept:
        raise DataError(f"{left_out}; give rows with a text to learn")
    if len(kept) < n_rows:
        warnings.warn(DataWarning(f"{left_out}; they are left out"), stacklevel=2)
    return kept


def note_unread(source: str, read: Iterable[str], present: Iterable[str]) -> None:
    """Warn of the columns that are `present` and not `read`."""
    names = list(read)
    unread = ", ".join(column for column in present if column not in names)
    if unread:
        found = f"{source} has the columns {', '.join(names)}, which are read, and"
        listed = shorten(unread, 80, placeholder=", ...")
        warnings.warn(DataWarning(f"{found} {listed}, which are not"), stacklevel=2)


def note_empty(source: str, column: str, texts: Sequence[str]) -> None:
    """Warn of rows that are read although they have nothing in this column, such as no prompt."""
    n_empty = sum(not text.strip() for text in texts)
    if n_empty:
        found = f"{n_empty} of {len(texts)} rows of {source} have nothing in column {column!r}"
        warnings.warn(DataWarning(f"{found}; they are read without it"), stacklevel=2)


def spread(limit: int, items: list[Any]) -> list[Any]:
    """At most `limit` items, evenly spaced; 0 takes all."""
    if not limit or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def load_rows(source: str, split: str, by_line: bool = False) -> list[Row]:
    """Rows of a file, of the files in a folder, of a built-in text or of a split of a data set,
    unchanged.

    A .txt is one row, or one per line, without its line break. Quotation marks have no special
    meaning in a .tsv. The classes of a task of GLUE are named.

    Raises DataError if the source is missing, unreadable or empty, or a task of GLUE has no such
    class.
    """
    if source in BUILT_IN:
        if Path(source).exists():
            warnings.warn(
                DataWarning(f"{source} is the built-in text; ./{source} is your own"), stacklevel=2
            )
        module, function = BUILT_IN[source].split(":")
        return [{"text": text} for text in getattr(import_module(module), function)()]
    name = parse_source(source)
    if name.is_local and name.is_whole:
        files = files_of(name.path, name.glue and name.glue.split(split))
        if not files and name.glue is not None:
            split = name.glue.split(split)
            raise DataError(f"{name.path} has no file of the split {split}, such as {split}.jsonl")
        of_files = {file: read_file(file, by_line) for file in files}
        if name.glue is None:
            refuse_splits(source, files)
        refuse_other_columns(of_files)
        rows = [row for of_file in of_files.values() for row in of_file]
    elif of_splits := files_of_splits(name):
        rows = read_splits(source, of_splits, by_line)
    else:
        rows = with_class_names(load_split(source, split))
    if name.glue is not None:
        for number, row in enumerate(rows, start=1):
            row[LABEL] = name.glue.name_class(row.get(LABEL), f"{source}, row {number}")
    if not rows:
        raise DataError(f"{source} is empty")
    return rows


def has_validation_split(source: str, has_images: bool = False) -> bool:
    """True if `source` is a data set with a validation split, and names no split itself.

    Local files of texts have none, but those of a task of GLUE; `datasets` reads folders of images.
    """
    name = parse_source(source)
    if source in BUILT_IN or (name.is_local and name.path.is_file()):
        return False
    if name.is_local and name.is_whole and not has_images:
        return name.glue is not None and bool(files_of(name.path, name.glue.split("validation")))
    return name.glue is not None or (
        name.split is None and "validation" in split_names(source, has_images)
    )


def load_split(source: str, split: str, has_images: bool = False) -> Any:
    """The split that `source` names, or its split for "train", or for "validation" its validation
    or else test split.

    Raises DataError if it has no such split.
    """
    from datasets import load_dataset

    name = parse_source(source)
    images = image_files(name) if has_images else {}
    splits = images or split_names(source)
    if name.split is None:
        is_whole = name.is_local and list(splits) == ["train"]  # a folder without splits
        wanted = ("train",) if split == "train" or is_whole else _EVALUATION_SPLITS
        wanted = wanted if name.glue is None else (name.glue.split(split),)
        part = next((candidate for candidate in wanted if candidate in splits), None)
    else:
        wanted = [part.partition("[")[0] for part in name.split.split("+")]  # train[:10%]+test
        part = name.split if set(wanted) <= set(splits) else None
    if name.is_local and list(splits) == ["train"] and not (name.path / "README.md").is_file():
        refuse_splits(source, [*filter(is_table, visible(name.path))])
    if part is None:
        raise DataError(f"{source} has no split {' or '.join(wanted)}; it has {', '.join(splits)}")
    try:
        if images:
            return load_dataset("imagefolder", data_files=images, split=part)
        # its cache does not see a change of a local file that keeps the time of the last one
        fresh: dict[str, Any] = {"download_mode": "force_redownload"} if name.is_local else {}
        return load_dataset(name.id, name.config, split=part, **fresh)
    except Exception as error:  # each reader raises its own types
        raise DataError(f"cannot read {source}: {cause(error)}") from error


def split_names(source: str, has_images: bool = False) -> Sequence[str]:
    """Names of the splits of a hub data set, or of a local folder that `datasets` reads.

    Raises DataError if there is no such data set.
    """
    from datasets import get_dataset_split_names

    name = parse_source(source)
    if name.name in BUILT_IN or (name.is_local and name.path.is_file()):
        raise DataError(
            f"{name.name} has no configurations and no splits; name it without"
            f" {source[len(name.name) :]}"
        )
    try:
        if has_images and (images := image_files(name)):
            return [*images]
        return get_dataset_split_names(name.id, name.config)
    except Exception as error:  # offline, unknown, gated, or without configuration
        where = (
            f"folder {name.name}"
            if name.is_local
            else f"{source!r}, which is no local file, from the hub"
        )
        hint = (
            _SPLITS
            if name.is_local or name.config
            else f"Or is it an {unknown('built-in text', source, BUILT_IN)}"
        )
        raise DataError(f"cannot read the splits of {where}: {cause(error)}. {hint}") from error


def _renamed(where: str, row: Row, names: dict[str, str]) -> Row:
    kind = list if "messages" in names.values() else str
    for column in names:
        if not isinstance(row.get(column), kind | None):
            raise DataError(
                f"{where}: column {column!r} has a {type(row[column]).__name__}, not a"
                f" {kind.__name__}"
            )
    renamed = {name: row.get(column) or kind() for column, name in names.items()}
    for message in renamed.get("messages", ()):
        if not (
            isinstance(message, dict)
            and all(isinstance(message.get(key), str) for key in ("role", "content"))
        ):
            raise DataError(
                f"{where}: the message {str(message)[:80]} lacks 'role' or 'content' as text"
            )
    return renamed
