"""Files of data: which ones are read, how, and what is said of damaged ones."""

from __future__ import annotations

import csv
import glob
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.checks import MOST
from qpeft.errors import DataError, DataWarning
from qpeft.files import unique_keys

Row = dict[str, Any]  # by column

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {}),
    ".parquet": ("parquet", {}),
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}
_NOT_SPACE = re.compile(r"\S")


def with_class_names(data_set: Any) -> list[Row]:
    """The rows of a data set, with the names of classes in place of their numbers."""
    rows = [dict(row) for row in data_set]
    for column, names in class_columns(data_set).items():
        for row in rows:
            row[column] = class_name(row[column], names)
    return rows


def class_name(label: int | None, names: Sequence[str]) -> str | None:
    """The name of a label; None for -1, which is a withheld label."""
    return names[label] if label is not None and label >= 0 else None


def read_file(file: Path, by_line: bool) -> list[Row]:
    """The rows of a file."""
    kind, options = READERS[file.suffix.lower()]
    try:
        if kind == "text":
            return _read_text(file, by_line)
        if kind == "csv":
            return _read_table(file, options)
        return _read_json(file) if kind == "json" else with_class_names(load_file(file))
    except DataError:
        raise
    except Exception as error:  # each reader raises its own types
        raise DataError(f"cannot read {file} as {kind}: {cause(error)}") from error


def _read_text(file: Path, by_line: bool) -> list[Row]:
    """A row, or one for each line. (`datasets` would keep a byte order mark, and needs a cache.)"""
    content = file.read_text(encoding="utf-8-sig")
    if not content:
        return []
    texts = content.removesuffix("\n").split("\n") if by_line else [content]
    return [{"text": text} for text in texts]


def _read_table(file: Path, options: dict[str, Any]) -> list[Row]:
    """The rows of a table, in which every field is a text, also a number.

    (`datasets` guesses types from 10,000 rows at a time: `007` would be 7 in some and 007 in others.
    It drops the first fields of rows that are longer than the first line.)
    """
    csv.field_size_limit(MOST)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, strict=True, **options)
        lines = filter(None, reader)  # no blank ones
        names = next(lines, [])
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{file} has the column {twice[0]!r} twice; rename one of them")
        rows = []
        for fields in lines:
            if len(fields) != len(names):
                advice = "use a .csv, and quote fields" if options else "quote fields"
                raise DataError(
                    f"{file}, line {reader.line_num}: it has {len(fields)} fields, and the first"
                    f" line has {len(names)}; {advice} that contain the separator"
                )
            rows.append(dict(zip(names, fields, strict=True)))
    if options:
        _note_quoted(file, rows)
    return rows


def _note_quoted(file: Path, rows: Sequence[Row]) -> None:
    """Warn of fields of a .tsv such as `"He said ""hi""."`, which programs write for the text
    `He said "hi".`: here all of these marks belong to the text, as in the files of GLUE.
    """
    n_quoted = 0
    for row in rows:
        for field in row.values():
            inner = field[1:-1]
            is_quoted = field[:1] == field[-1:] == '"' and '""' in inner
            n_quoted += is_quoted and '"' not in inner.replace('""', "")
    if n_quoted:
        warnings.warn(
            DataWarning(
                f"{file} has {n_quoted} fields in quotation marks, with doubled ones inside; in a"
                " .tsv they belong to the text. If it is 'He said \"hi\"' that was written"
                ' \'"He said ""hi"""\', save the table as .csv'
            ),
            stacklevel=2,
        )


def load_file(file: Path) -> Any:
    """A file by `datasets`, streamed: otherwise it would be copied to its cache. Raises DataError
    for a damaged one.
    """
    from datasets import load_dataset

    kind, options = READERS.get(file.suffix.lower(), ("text", {}))
    try:
        path = glob.escape(str(file))  # `datasets` reads it as a pattern
        return load_dataset(kind, data_files=path, split="train", streaming=True, **options)
    except Exception as error:  # each reader raises its own types
        raise DataError(f"cannot read {file} as {kind}: {cause(error)}") from error


def _read_json(file: Path) -> list[Row]:
    """A JSON array, or one object or more. (`datasets` would turn columns of mixed types into
    strings.)
    """
    content = file.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    values: list[Any] = []
    end = 0
    while (start := _NOT_SPACE.search(content, end)) is not None:
        value, end = decoder.raw_decode(content, start.start())
        values.append(value)
    # raises for unpaired surrogates, which tokenizers cannot encode
    json.dumps(values, ensure_ascii=False).encode()
    is_array = len(values) == 1 and isinstance(values[0], list)
    rows = values[0] if is_array else values
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict | str):
            raise DataError(
                f"{file}, row {number}: expected an object with columns, got {type(row).__name__}"
            )
    return [{"text": row} if isinstance(row, str) else row for row in rows]


def cause(error: BaseException) -> str:
    """The first line of the message of the exception that caused this one, or its type."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def class_columns(data_set: Any) -> dict[str, list[str]]:
    """The names of the classes for each column of a data set that has class indices."""
    features = getattr(data_set, "features", None) or {}
    return {
        column: feature.names for column, feature in features.items() if hasattr(feature, "names")
    }


def is_table(path: Path) -> bool:
    return path.suffix.lower() in READERS


def is_image(path: Path) -> bool:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return path.suffix.lower() in ImageFolder.EXTENSIONS


def visible(folder: Path) -> list[Path]:
    """What is in a folder but hidden files, such as the ._name of a Mac."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
