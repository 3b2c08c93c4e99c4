"""Data sources: local files and folders, built-in texts, and data sets with splits; checked when read.

A row is a dict in one of three formats, which its columns determine:

    {"messages": [{"role": ..., "content": ...}, ...]}   a conversation; the assistant's messages are scored
    {"prompt": str, "completion": str}                   the completion is scored
    {"text": str}                                        the whole text is scored
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from qpeft.errors import DataError, DataWarning, setting
from qpeft.files import file_hash, parse_json
from qpeft.training.glue import LABEL
from qpeft.training.source_names import BUILT_IN, SourceName, parse_source

Row = dict[str, Any]

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),  # "null" and "NA" are words
    ".parquet": ("parquet", {}),
    ".tsv": ("tsv", {}),
}
_LONG_LINE = 8  # words
_EVALUATION_SPLITS = ("validation", "test")
_SPLITS = "A split follows a second colon: NAME:CONFIG:SPLIT, or NAME::SPLIT without a configuration"


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, and whether rows stay as they are."""

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    keep_empty: bool = False  # rows with nothing to score
    by_line: bool = False  # a .txt is one row per line, not one document


def load_examples(source: str, split: str, columns: Columns) -> list[Row]:
    """Rows of `source` in one of the three formats above, which the first row determines.

    `split` ("train" or "validation") selects a split of a hub data set if the source names none; other sources have
    only one. Rows with nothing to score, an empty text or no answer, are left out with a warning, or kept.

    Raises:
        DataError: the source is missing, unreadable or empty, or lacks the columns.
    """
    if source in BUILT_IN:
        module, function = BUILT_IN[source].split(":")
        rows: list[Row] = [{columns.text: text} for text in getattr(import_module(module), function)()]
    else:
        rows = load_rows(source, split, by_line=columns.by_line)
    if not rows:
        raise DataError(f"{source} is empty")
    names = _names(source, rows[0], columns)
    renamed = [_renamed(f"{source}, row {number}", row, names) for number, row in enumerate(rows, start=1)]
    left_out = [number for number, row in enumerate(renamed, start=1) if not _has_something_to_score(row)]
    if left_out:
        why = "no message of an assistant" if "messages" in names else f"nothing in column {list(names)[-1]!r}"
        lacking = f"{len(left_out)} of {len(rows)} rows of {source} have {why} (the first is row {left_out[0]})"
        if len(left_out) == len(rows):
            raise DataError(f"{lacking}; give rows with a text to learn")
        if columns.keep_empty:
            return renamed
        warnings.warn(DataWarning(f"{lacking}; they are left out"), stacklevel=1)
    if all("text" in row and not row["text"].strip() for row in renamed):
        raise DataError(f"{source} has nothing but white space; give rows with a text to learn")
    return [row for row in renamed if _has_something_to_score(row)]


def references_by_prompt(rows: Iterable[Row]) -> dict[str, list[str]]:
    """The prompts of rows in the second format, in order, each with all its answers; none for other rows."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "prompt" in row:
            found.setdefault(row["prompt"], []).append(row["completion"].strip())
    return found


def load_rows(source: str, split: str, headerless: Sequence[str] = (), by_line: bool = False) -> list[Row]:
    """Rows of a file, of the files in a folder, or of a split of a data set, unchanged.

    The first line of a .tsv is its header, unless it has none of the column names `headerless`. A .txt is one row, or
    one per line, without its line break. The classes of a task of GLUE are named.

    Raises:
        DataError: the source is missing or unreadable, or a task of GLUE has no such class.
    """
    glue = parse_source(source).glue
    if (path := plain_path(source)) is not None:
        files = _files(path) if glue is None else _of_split(path, glue.split(split))
        if not files and glue is not None:
            raise DataError(f"{path} has no file of the split {glue.split(split)}, such as {glue.split(split)}.jsonl")
        rows = [row for file in files for row in _read(file, headerless, by_line)]
    else:
        rows = _read_split(source, split)
    if glue is not None:
        for number, row in enumerate(rows, start=1):
            row[LABEL] = glue.name_class(row.get(LABEL), f"{source}, row {number}")
    return rows


def plain_path(source: str) -> Path | None:
    """The path of a local file or folder that is read as a whole; None for a data set with splits.

    Raises DataError if it does not exist.
    """
    name = parse_source(source)
    return name.path if name.is_local and name.is_whole else None


def has_validation_split(source: str) -> bool:
    """True if `source` is a data set with a validation split, and names no split itself."""
    name = parse_source(source)
    if name.glue is not None:
        is_folder = name.is_local and name.is_whole and name.path.is_dir()
        return not name.is_local or (is_folder and bool(_of_split(name.path, name.glue.split("validation"))))
    is_data_set = name.name not in BUILT_IN and not (name.is_local and name.is_whole)
    return is_data_set and name.split is None and "validation" in split_names(source)


def warn_of_shared(what: str, training: Iterable[Any], others: Iterable[Any]) -> bool:
    """Warn if a tenth of the contents, such as the bytes of an example, of the data `what` are also training data.

    Returns whether it warned.
    """
    n_shared, n = count_shared(training, others)
    if is_shared := n_shared > n // 10:
        warnings.warn(
            f"{n_shared} of {n} {what} are also training data, so the metrics describe learned examples; give other "
            "data to measure generalization",
            stacklevel=1,
        )
    return is_shared


def count_shared(training: Iterable[Any], others: Iterable[Any]) -> tuple[int, int]:
    """How many of `others` are in `training`, and how many there are."""
    known, found = set(training), list(others)
    return sum(item in known for item in found), len(found)


def long_lines(rows: Sequence[Row]) -> list[str]:
    """The lines of texts that are too long to be equal by chance, without white space."""
    lines = [line.split() for row in rows if "text" in row for line in row["text"].splitlines()]
    return [" ".join(words) for words in lines if len(words) >= _LONG_LINE]


def content_hash(source: str, pattern: str = "**/*") -> str | None:
    """Hash of a local source, or of its files that match; None for a data set of the hub, or a built-in text."""
    name = parse_source(source)
    if name.name in BUILT_IN or not name.is_local:
        return None
    path = name.path
    files = [path] if path.is_file() else sorted(file for file in path.glob(pattern) if file.is_file())
    return hashlib.sha256(b"".join(bytes.fromhex(file_hash(file)) for file in files)).hexdigest()


def _files(path: Path) -> list[Path]:
    """The file itself, or the supported files of a folder, sorted by name."""
    allowed = f"files must end in one of {', '.join(_READERS)}"
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"cannot read {path}: its suffix is {path.suffix!r}; {allowed}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise DataError(f"no data in folder {path}: it contains {found}; {allowed}")
    return files


def _of_split(path: Path, split: str) -> list[Path]:
    """The file itself, or the files of a folder with a split: `train.jsonl`, `train-00000-of-00001.parquet`."""
    return [file for file in _files(path) if path.is_file() or re.fullmatch(rf"{split}(-\d.*)?", file.stem)]


def _read(file: Path, headerless: Sequence[str], by_line: bool) -> list[Row]:
    """The rows of a file, streamed: otherwise `datasets` would copy the file to its cache."""
    from datasets import load_dataset

    kind, options = _READERS[file.suffix.lower()]
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty")
    if kind == "tsv":
        return _read_tsv(file, headerless)
    if kind == "json":
        return _read_json(file)
    if kind == "text" and by_line:
        options = {**options, "sample_by": "line"}
    try:
        path = glob.escape(str(file))  # `datasets` reads it as a pattern
        return list(load_dataset(kind, data_files=path, split="train", streaming=True, **options))
    except Exception as error:  # each reader raises its own types
        raise DataError(f"cannot read {file} as {kind}: {_root_cause(error)}") from error


def _read_json(file: Path) -> list[Row]:
    """A JSON array, one object, or one object per line. (`datasets` would turn columns of mixed types into strings.)"""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} as json: {error}") from error
    try:
        found = parse_json(content)
    except ValueError:
        found = [_line(file, number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    rows = [{"text": row} if isinstance(row, str) else row for row in (found if isinstance(found, list) else [found])]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected an object with columns, got {type(row).__name__}")
    return rows


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise DataError(f"cannot read {file} as json: line {number}: {error}") from error


def _read_tsv(file: Path, headerless: Sequence[str]) -> list[Row]:
    """The fields unchanged: quotation marks have no special meaning in a .tsv."""
    try:
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file} as tsv: it is not UTF-8 ({error})") from error
    if not lines:
        return []
    has_header = not headerless or any(name in lines[0] for name in headerless)
    names, body = (lines[0], lines[1:]) if has_header else (headerless, lines)
    for number, fields in enumerate(body, start=1 + has_header):
        if len(fields) != len(names):
            raise DataError(
                f"{file}, line {number}: expected {len(names)} tab-separated fields ({', '.join(names)}), "
                f"got {len(fields)}"
            )
    labels = [fields[-1] for fields in body]
    if not has_header and len(labels) > 2 and labels[0] not in labels[1:]:  # not a class with one example
        raise DataError(
            f"{file}: the first line, {' and '.join(map(repr, lines[0]))}, looks like a header; "
            f"set {setting('text_column')} and "
            f"{setting('label_column')} to its names, or remove the line"
        )
    return [dict(zip(names, fields, strict=True)) for fields in body]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_split(source: str, split: str) -> list[Row]:
    data_set = load_split(source, split)
    rows = [dict(row) for row in data_set]
    for column, names in class_columns(data_set).items():
        for row in rows:
            row[column] = names[row[column]] if (row[column] or 0) >= 0 else None  # -1 is a withheld label
    return rows


def class_columns(data_set: Any) -> dict[str, list[str]]:
    """The names of the classes for each column of a data set that has class indices."""
    features = getattr(data_set, "features", None) or {}
    return {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}


def load_split(source: str, split: str) -> Any:
    """The split that `source` names, or its split for "train", or for "validation" its validation or else test split.

    Raises DataError if it has no such split.
    """
    from datasets import load_dataset

    name, found = parse_source(source), split_names(source)
    if name.split is None:
        wanted = ("train",) if split == "train" else _EVALUATION_SPLITS
        wanted = wanted if name.glue is None else (name.glue.split(split),)
        part = next((candidate for candidate in wanted if candidate in found), None)
    else:
        wanted = [one.partition("[")[0] for one in name.split.split("+")]  # train[:10%]+test
        part = name.split if set(wanted) <= set(found) else None
    if part is None:
        raise DataError(f"{source} has no split {' or '.join(wanted)}; it has {', '.join(found)}")
    try:
        return load_dataset(_id_of(name), name.config, split=part)
    except Exception as error:  # each reader raises its own types
        raise DataError(f"cannot read {source}: {_root_cause(error)}") from error


def split_names(source: str) -> Sequence[str]:
    """Names of the splits of a hub data set, or of a local folder that `datasets` reads.

    Raises DataError if there is no such data set.
    """
    from datasets import get_dataset_split_names

    name = parse_source(source)
    if name.name in BUILT_IN or (name.is_local and name.path.is_file()):
        raise DataError(f"{name.name} has no configurations and no splits; name it without {source[len(name.name) :]}")
    try:
        return get_dataset_split_names(_id_of(name), name.config)
    except Exception as error:  # offline, unknown, gated, or without configuration
        cause = _root_cause(error)
        if name.is_local:
            raise DataError(f"cannot read the splits of folder {name.name}: {cause}. {_SPLITS}") from error
        near = get_close_matches(source, BUILT_IN, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ("" if name.config is None else f" {_SPLITS}")
        raise DataError(
            f"{source!r} is not a local file or folder, not a built-in text ({', '.join(BUILT_IN)}), and could not be "
            f"loaded from the hub: {cause}.{hint}"
        ) from error


def _id_of(name: SourceName) -> str:
    """As `datasets` takes it: a hub id, or the path of a folder."""
    return str(name.path) if name.is_local else name.name


def _names(source: str, row: Row, columns: Columns) -> dict[str, str]:
    """Column of the source -> key in the row; the last one is scored."""
    formats = (
        {"messages": "messages"},
        {columns.prompt: "prompt", columns.completion: "completion"},
        {columns.text: "text"},
    )
    for names in formats:
        if names.keys() <= row.keys():
            return names
    raise DataError(
        f"{source} has the columns {', '.join(row)}; required: {columns.text!r}, or {columns.prompt!r} and "
        f"{columns.completion!r}, or 'messages'. {setting('text_column')}, {setting('prompt_column')} and "
        f"{setting('completion_column')} give the names of these columns"
    )


def _renamed(where: str, row: Row, names: dict[str, str]) -> Row:
    kind = list if "messages" in names else str
    for column in names:
        if not isinstance(row.get(column), kind | None):
            raise DataError(f"{where}: column {column!r} has a {type(row[column]).__name__}, not a {kind.__name__}")
    renamed = {name: row.get(column) or kind() for column, name in names.items()}
    check_text(where, renamed)
    for message in renamed.get("messages", ()):
        if not _is_message(message):
            raise DataError(f"{where}: the message {str(message)[:80]} lacks 'role' or 'content' as text")
    return renamed


def check_text(where: str, content: Any) -> None:
    """Raise DataError for unpaired surrogates, which JSON allows and tokenizers cannot encode."""
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not valid text ({error.reason}); correct the row") from error


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _has_something_to_score(row: Row) -> bool:
    if "messages" in row:
        return any(message["role"] == "assistant" and message["content"] for message in row["messages"])
    return bool(row.get("completion", row.get("text")))
