"""Where examples come from: local files, folders, built-in texts, hub data sets; refused early and clearly.

A row is a dict with one of three forms, told apart by its columns:

    {"messages": [{"role": ..., "content": ...}, ...]}   a conversation: the assistant's words are scored
    {"prompt": str, "completion": str}                   the completion is scored
    {"text": str}                                        all of it is scored
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from qpeft.errors import DataError
from qpeft.files import parse_json
from qpeft.training.nearby import explain_missing, is_path

Row = dict[str, Any]

# A layer above this one supplies the texts, so they are named here and imported only when asked for.
BUILT_IN = {"numpy-docs": "qpeft.demo.corpus:numpy_docs", "stdlib-docs": "qpeft.demo.corpus:stdlib_docs"}

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),  # "null" and "NA" are words
    ".parquet": ("parquet", {}),
    ".tsv": ("tsv", {}),
}
_LOCAL_SUFFIXES = {*_READERS, ".npz"}
_EVALUATION_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read, where they differ from the usual ones."""

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"


def load_examples(source: str, split: str, columns: Columns) -> list[Row]:
    """Rows of `source` in one of the three forms above, that of its first row.

    `split` ("train" or "validation") picks a hub data set's part; other sources are one part.
    Rows with nothing to score, an empty text or no answer, are left out, and a warning says how many.
    Raises DataError for a source that is missing, unreadable, empty, or lacks the columns.
    """
    if source in BUILT_IN:
        return _in_form(source, [{columns.text: text} for text in _built_in(source)], columns)
    return _in_form(source, load_rows(source, split), columns)


def load_rows(source: str, split: str, headerless: Sequence[str] = ()) -> list[Row]:
    """Rows of a file, a folder's files, or a hub data set's part, as they are.

    A .tsv has a header in its first line; it may lack one where the columns' names are given by `headerless`.
    Raises DataError for a source that is missing or unreadable.
    """
    if is_local(source):
        return [row for file in _files(local_path(source)) for row in _read(file, headerless)]
    return _hub(source, split)


def is_local(source: str) -> bool:
    """True if `source` names something on this machine, whether or not it is there."""
    return Path(source).expanduser().exists() or is_path(source) or Path(source).suffix.lower() in _LOCAL_SUFFIXES


def local_path(source: str) -> Path:
    """Where a local source is. Raises DataError if it is not there."""
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"no file or folder {source}: {explain_missing(source)}")
    return path


def has_validation_split(source: str) -> bool:
    """True if `source` is a hub data set with a split made for validation."""
    return source not in BUILT_IN and not is_local(source) and "validation" in hub_splits(source)


def _built_in(name: str) -> list[str]:
    module, function = BUILT_IN[name].split(":")
    load: Callable[[], list[str]] = getattr(import_module(module), function)
    return load()


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's readable files in the order of their names."""
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"cannot read {path}: its suffix is {path.suffix!r}; {_allowed_suffixes()}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise DataError(f"no data in folder {path}: it holds {found}; {_allowed_suffixes()}")
    return files


def _allowed_suffixes() -> str:
    return f"files must end in one of {', '.join(_READERS)}"


def _read(file: Path, headerless: Sequence[str]) -> list[Row]:
    """Streamed, so that the library leaves no copy of a local file in its cache."""
    from datasets import load_dataset

    kind, options = _READERS[file.suffix.lower()]
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty")
    if kind == "tsv":
        return _read_tsv(file, headerless)
    if kind == "json":
        return _read_json(file)
    try:
        return list(load_dataset(kind, data_files=str(file), split="train", streaming=True, **options))
    except Exception as error:  # each reader has errors of its own
        raise DataError(f"cannot read {file} as {kind}: {_root_cause(error)}") from error


def _read_json(file: Path) -> list[Row]:
    """A JSON array, one object, or an object a line; the library would turn columns of mixed types into JSON texts."""
    try:
        content = file.read_text(encoding="utf-8-sig")
        try:
            found = parse_json(content)
        except ValueError:
            found = [_line(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} as json: {error}") from error
    rows = [{"text": row} if isinstance(row, str) else row for row in (found if isinstance(found, list) else [found])]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: a {type(row).__name__}, not an object with columns; repair it")
    return rows


def _line(number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _read_tsv(file: Path, headerless: Sequence[str]) -> list[Row]:
    """Fields as they stand: a quotation mark in a .tsv is one."""
    try:
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file} as tsv: it is no UTF-8 text ({error})") from error
    has_header = not headerless or any(name in lines[0] for name in headerless)
    names, body = (lines[0], lines[1:]) if has_header else (headerless, lines)
    for number, fields in enumerate(body, start=1 + has_header):
        if len(fields) != len(names):
            raise DataError(
                f"{file}, line {number}: {len(fields)} fields between tabs, not {len(names)} ({', '.join(names)})"
            )
    if not has_header:
        _refuse_strange_header(file, body)
    return [dict(zip(names, fields, strict=True)) for fields in body]


def _refuse_strange_header(file: Path, lines: Sequence[Sequence[str]]) -> None:
    """A first line whose label stands nowhere else names columns, rather than an example of a class of its own."""
    labels = [fields[-1] for fields in lines]
    if len(labels) > 2 and labels[0] not in labels[1:]:
        raise DataError(
            f"{file}: the first line, {' and '.join(map(repr, lines[0]))}, looks like the names of the columns; name "
            "them with text_column and label_column, or remove the line"
        )


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub(source: str, split: str) -> list[Row]:
    data_set = hub_data_set(source, split)
    rows = [dict(row) for row in data_set]
    for column, names in class_columns(data_set).items():
        for row in rows:
            row[column] = names[row[column]] if (row[column] or 0) >= 0 else None  # -1 stands for a secret label
    return rows


def class_columns(data_set: Any) -> dict[str, list[str]]:
    """The columns of a hub data set that hold indices of classes, with the names of the classes."""
    features = getattr(data_set, "features", None) or {}
    return {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}


def hub_data_set(source: str, split: str) -> Any:
    """The part of a hub data set for "train" or "validation" (else its test split). Raises DataError without one."""
    from datasets import load_dataset

    name, config = _name_and_config(source)
    splits = hub_splits(source)
    wanted = ("train",) if split == "train" else _EVALUATION_SPLITS
    part = next((candidate for candidate in wanted if candidate in splits), None)
    if part is None:
        raise DataError(f"{source} has no split {' or '.join(wanted)}; it has {', '.join(splits)}")
    return load_dataset(name, config, split=part)


def hub_splits(source: str) -> Sequence[str]:
    """Names of a hub data set's parts. Raises DataError if there is no such data set."""
    from datasets import get_dataset_split_names

    name, config = _name_and_config(source)
    try:
        return get_dataset_split_names(name, config)
    except Exception as error:  # offline, unknown, gated, a missing configuration: the library's words say which
        near = get_close_matches(source, BUILT_IN, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{source!r} is no local file or folder, no built-in text ({', '.join(BUILT_IN)}), and the hub did "
            f"not give a data set of that name: {_root_cause(error)}.{hint}"
        ) from error


def _name_and_config(source: str) -> tuple[str, str | None]:
    name, _, config = source.partition(":")
    return name, config or None


def _in_form(source: str, rows: Sequence[Row], columns: Columns) -> list[Row]:
    if not rows:
        raise DataError(f"{source} is empty")
    form = _form(source, rows[0], columns)
    renamed = list(_renamed(source, rows, form))
    left_out = [number for number, row in enumerate(renamed, start=1) if not _has_something_to_score(row)]
    if left_out:
        why = "no answer of an assistant" if "messages" in form else f"nothing in column {list(form)[-1]!r}"
        lacking = f"{len(left_out)} of {len(rows)} rows of {source} have {why}, row {left_out[0]} the first"
        if len(left_out) == len(rows):
            raise DataError(f"{lacking}; give rows with something to learn")
        warnings.warn(f"{lacking}; they are left out", stacklevel=1)
    return [row for row in renamed if _has_something_to_score(row)]


def _form(source: str, row: Row, columns: Columns) -> dict[str, str]:
    """Column in the source -> name in the row's form; the last one is what is scored."""
    forms = (
        {"messages": "messages"},
        {columns.prompt: "prompt", columns.completion: "completion"},
        {columns.text: "text"},
    )
    for form in forms:
        if form.keys() <= row.keys():
            return form
    raise DataError(
        f"{source} has the columns {', '.join(row)}; needed: {columns.text!r}, or {columns.prompt!r} and "
        f"{columns.completion!r}, or 'messages'. Name others with text_column, or prompt_column and completion_column"
    )


def _renamed(source: str, rows: Sequence[Row], form: dict[str, str]) -> Iterable[Row]:
    kind = list if "messages" in form else str
    for number, row in enumerate(rows, start=1):
        for column in form:
            if not isinstance(row.get(column), kind | None):
                found = type(row[column]).__name__
                raise DataError(f"{source}, row {number}: column {column!r} holds a {found}, not a {kind.__name__}")
        renamed = {name: row.get(column) or kind() for column, name in form.items()}
        _check_unicode(source, number, renamed)
        for message in renamed.get("messages", ()):
            if not _is_message(message):
                found = str(message)[:80]
                raise DataError(f"{source}, row {number}: the message {found} lacks 'role' or 'content' as text")
        yield renamed


def _check_unicode(source: str, number: int, row: Row) -> None:
    """Half of a surrogate pair, as JSON may hold, has no bytes that a tokenizer could read."""
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{source}, row {number}: {error.reason}, which is no text; repair it") from error


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _has_something_to_score(row: Row) -> bool:
    if "messages" in row:
        return any(message["role"] == "assistant" and message["content"] for message in row["messages"])
    return bool(row.get("completion", row.get("text")))
