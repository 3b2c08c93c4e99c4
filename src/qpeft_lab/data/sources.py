"""Data sources: local files and folders, built-in texts, and data sets with splits; checked when
read.

A name is a path, a hub id or a built-in text, with a configuration and a split where it has them:

    text.txt   photos   name   name:config   name:config:split   name::split   glue/task   glue/task:folder

A row of text is a dict in one of three formats, which its columns determine:

    {"messages": [{"role": ..., "content": ...}, ...]}   a conversation; the assistant's messages are scored
    {"prompt": str, "completion": str}                   the completion is scored
    {"text": str}                                        the whole text is scored
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from qpeft.checks import MOST, unknown
from qpeft.errors import DataError, DataWarning
from qpeft.files import file_hash, unique_keys
from qpeft_lab.data.glue import HUB, LABEL, GlueTask, find_glue
from qpeft_lab.user_files import explain_missing, looks_like_path

if TYPE_CHECKING:
    from qpeft_lab.settings import SharedSettings

Row = dict[str, Any]

# in a package above this one, therefore imported only when used
BUILT_IN = {
    "numpy-docs": "qpeft_lab.demo.corpus:numpy_docs",
    "stdlib-docs": "qpeft_lab.demo.corpus:stdlib_docs",
}

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {}),
    ".parquet": ("parquet", {}),
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}
# those of usual chat templates
_ROLES = {"assistant", "developer", "function", "system", "tool", "user"}
_SPLIT = re.compile(
    r"(?<![a-z])(train|validation|valid|val|dev|test|eval)(ing|uation|set|data)?(?![a-z])",
    re.IGNORECASE,
)
SPLIT_FOLDERS = {  # of images
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_GLUE_FILE = re.compile(r"(train|(validation|test)(_matched|_mismatched)?)(-\d.*)?")
_NOT_SPACE = re.compile(r"\S")
_EVALUATION_SPLITS = ("validation", "test")
_SPLITS = (
    "A split follows a second colon: NAME:CONFIG:SPLIT, or NAME::SPLIT without a configuration"
)


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
        return path.exists() or looks_like_path(self.name) or path.suffix.lower() in _READERS

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
    if path.exists() or path.suffix.lower() in _READERS:
        return SourceName(source)
    name, config, split = (*source.split(":", 2), "", "")[:3]
    return SourceName(name, config or None, split or None)


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
        files = _files(name.path, name.glue and name.glue.split(split))
        if not files and name.glue is not None:
            split = name.glue.split(split)
            raise DataError(f"{name.path} has no file of the split {split}, such as {split}.jsonl")
        of_files = {file: _read(file, by_line) for file in files}
        if name.glue is None:
            _refuse_splits(source, files)
        _refuse_other_columns(of_files)
        rows = [row for of_file in of_files.values() for row in of_file]
    elif of_splits := _files_of_splits(name):
        rows = _read_splits(source, of_splits, by_line)
    else:
        rows = _with_class_names(load_split(source, split))
    if name.glue is not None:
        for number, row in enumerate(rows, start=1):
            row[LABEL] = name.glue.name_class(row.get(LABEL), f"{source}, row {number}")
    if not rows:
        raise DataError(f"{source} is empty")
    return rows


def _files_of_splits(name: SourceName) -> dict[str, list[Path]]:
    """The files of each split of a folder of which a split is named, such as `train-00.csv`.

    Empty for a folder that `datasets` reads: with a card that names files, or with sub-folders alone.
    """
    if not name.is_local or name.config or not name.split or not name.path.is_dir():
        return {}
    card = name.path / "README.md"
    has_configurations = card.is_file() and "\nconfigs:" in card.read_text("utf-8", "replace")
    if name.glue is not None or has_configurations:
        return {}
    splits: dict[str, list[Path]] = {}
    for file in filter(_is_table, visible(name.path)):
        if file.is_file() and (match := _SPLIT.search(file.stem)):
            of_word = SPLIT_FOLDERS[match[1].lower()]
            splits.setdefault(of_word, []).append(file)
    return splits


def _read_splits(source: str, of_splits: Mapping[str, list[Path]], by_line: bool) -> list[Row]:
    """The rows of the splits that `source` names, or parts of them, such as train[:10%]+test.

    Each file is read as if it were named itself. (`datasets` would read a .txt by lines and a .tsv
    with quotation marks, guess types, and keep rows from before a change of the files.)
    """
    from datasets import ReadInstruction

    name = parse_source(source)
    spec = str(name.split)
    wanted = {part.partition("[")[0] for part in spec.split("+")}
    in_splits = {file for files in of_splits.values() for file in files}
    unread = ", ".join(
        each.name
        for each in visible(name.path)
        if each not in in_splits and each.name != "README.md"
    )
    if unread:
        found = f"not read in {name.path}: {shorten(unread, 80, placeholder=', ...')}"
        warnings.warn(
            DataWarning(
                f"{found}; the files of a split have its name, and end in one of"
                f" {', '.join(_READERS)}"
            ),
            stacklevel=2,
        )
    for split in wanted - of_splits.keys():
        raise DataError(f"{source} has no split {split}; it has {', '.join(sorted(of_splits))}")
    of_files = {
        split: {file: _read(file, by_line) for file in of_splits[split]} for split in wanted
    }
    for split in wanted:
        _refuse_other_columns(of_files[split])
    rows = {
        split: [row for of_file in of_files[split].values() for row in of_file] for split in wanted
    }
    lengths = {split: len(of_split) for split, of_split in rows.items()}
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(f"cannot read {source}: {error}") from error
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]


def _refuse_splits(source: str, files: Sequence[Path]) -> None:
    """Raise DataError for a folder that is divided into splits, such as train.csv and test.csv.

    Warns if files are named after splits of different things, which may be one data set.
    """
    splits: dict[str, set[str]] = {}  # by the other letters of the name
    for file in files:
        if match := _SPLIT.search(file.stem):
            begin, end = match.span()
            others = (
                "" if begin == 0 else re.sub(r"[\W\d_]", "", file.stem[:begin] + file.stem[end:])
            )
            splits.setdefault(others.lower(), set()).add(match[1].lower())
    for of_name in splits.values():
        if "train" in of_name and len(of_name) > 1:
            raise DataError(
                f"{source} has files of the splits {', '.join(sorted(of_name))}, which would be read"
                f" together; name one, such as {parse_source(source).name}::train, or the file of one, such"
                f" as {files[0]}"
            )
    words = set[str]().union(*splits.values())
    if "train" in words and len(words) > 1:
        named = ", ".join(file.name for file in files if _SPLIT.search(file.stem))
        found = f"the files of {source} are read together, although some are named after splits"
        warnings.warn(
            DataWarning(f"{found} ({named}); if they are, name one of them"), stacklevel=2
        )


def _refuse_other_columns(of_files: Mapping[Path, list[Row]]) -> None:
    """Raise DataError if tables of a folder have different columns, as without a line of names."""
    columns = {
        file: rows[0].keys()
        for file, rows in of_files.items()
        if rows and _READERS[file.suffix.lower()][0] == "csv"
    }
    for file, names in columns.items():
        first = next(iter(columns))
        if names != columns[first]:
            raise DataError(
                f"{first} and {file} have different columns ({', '.join(columns[first])}; "
                f"{', '.join(names)}); give each table of the folder the same first line"
            )


def _with_class_names(data_set: Any) -> list[Row]:
    """The rows of a data set, with the names of classes in place of their numbers."""
    rows = [dict(row) for row in data_set]
    for column, names in class_columns(data_set).items():
        for row in rows:
            row[column] = class_name(row[column], names)
    return rows


def class_name(label: int | None, names: Sequence[str]) -> str | None:
    """The name of a label; None for -1, which is a withheld label."""
    return names[label] if label is not None and label >= 0 else None


def has_validation_split(source: str, has_images: bool = False) -> bool:
    """True if `source` is a data set with a validation split, and names no split itself.

    Local files of texts have none, but those of a task of GLUE; `datasets` reads folders of images.
    """
    name = parse_source(source)
    if source in BUILT_IN or (name.is_local and name.path.is_file()):
        return False
    if name.is_local and name.is_whole and not has_images:
        return name.glue is not None and bool(_files(name.path, name.glue.split("validation")))
    return name.glue is not None or (
        name.split is None and "validation" in split_names(source, has_images)
    )


def content_hash(source: str) -> str | None:
    """Hash of the files of a local source, hidden ones and runs excepted, and of the names of
    sub-folders, which are classes of images; None for a data set of the hub, or a built-in text.
    """
    name = parse_source(source)
    if name.name in BUILT_IN or not name.is_local:
        return None
    path = name.path
    files = [path] if path.is_file() else _content(path)
    sha = hashlib.sha256()
    for file in files:
        if file.parent not in (path, path.parent):
            sha.update(file.parent.relative_to(path).as_posix().encode())
        sha.update(bytes.fromhex(file_hash(file)))
    return sha.hexdigest()


def _content(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders, without those of a run or a study, which change:
    such a folder has a lock.
    """
    runs = {lock.parent for lock in folder.rglob(".lock")} - {folder}
    files = sorted(file for file in folder.rglob("[!.]*") if file.is_file())
    return [file for file in files if runs.isdisjoint(file.parents)]


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


def _files(path: Path, split: str | None = None) -> list[Path]:
    """The file itself, or the supported files of a folder by name: those of a split, such as
    `train-00000.parquet`.
    """
    allowed = f"files must end in one of {', '.join(_READERS)}"
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"cannot read {path}: its suffix is {path.suffix!r}; {allowed}")
        return [path]
    content = visible(path)  # `content_hash` leaves hidden files out as well
    files = [file for file in content if file.suffix.lower() in _READERS]
    if not files:
        others = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise DataError(
            f"no data in folder {path}: it contains {others}; {allowed}, and not begin with a dot"
        )
    if left_out := sorted(file.name for file in content if file not in files):
        warnings.warn(
            DataWarning(f"not read in {path}: {', '.join(left_out)}; {allowed}"), stacklevel=2
        )
    if split is None:
        return files
    if others := [file.name for file in files if not _GLUE_FILE.fullmatch(file.stem)]:
        found = f"not read in {path}: {', '.join(others)}; its files are named after GLUE's splits"
        warnings.warn(
            DataWarning(f"{found}, train, validation and test: rename dev.tsv"), stacklevel=2
        )
    return [file for file in files if re.fullmatch(rf"{split}(-\d.*)?", file.stem)]


def _read(file: Path, by_line: bool) -> list[Row]:
    """The rows of a file."""
    kind, options = _READERS[file.suffix.lower()]
    try:
        if kind == "text":
            return _read_text(file, by_line)
        if kind == "csv":
            return _read_table(file, options)
        return _read_json(file) if kind == "json" else _with_class_names(load_file(file))
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

    kind, options = _READERS.get(file.suffix.lower(), ("text", {}))
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


def load_split(source: str, split: str, has_images: bool = False) -> Any:
    """The split that `source` names, or its split for "train", or for "validation" its validation
    or else test split.

    Raises DataError if it has no such split.
    """
    from datasets import load_dataset

    name = parse_source(source)
    images = _image_files(name) if has_images else {}
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
        _refuse_splits(source, [*filter(_is_table, visible(name.path))])
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


def _image_files(name: SourceName) -> dict[str, list[str]]:
    """The images of each split of a folder whose classes are folders, as patterns of `datasets`;
    empty for another source, such as a folder of tables, or with configurations.

    (`datasets` alone takes every name with such a word for one of a split, also that of a class.)

    Raises DataError for a class without images, or a link, whose content `content_hash` cannot see.
    """
    if not name.is_local or name.config is not None or not name.path.is_dir():
        return {}
    folder = name.path
    splits: dict[str, list[Path]] = {}  # the folders of classes
    for part in _folders(folder):
        split = SPLIT_FOLDERS.get(part.name.lower())
        if split and (classes := _folders(part)):
            splits.setdefault(split, []).extend(classes)
    if "train" not in splits:
        splits = {"train": _folders(folder)}
        if all(part.name.lower() in SPLIT_FOLDERS for part in splits["train"]):
            return {}  # splits without classes
    found = {}
    for split, classes in splits.items():
        content = {of_class: visible(of_class) for of_class in classes}
        images = {part: [*filter(is_image, entries)] for part, entries in content.items()}
        around = {folder, *classes, *(of_class.parent for of_class in classes)}
        has_labels = any(entry.name.startswith("metadata.") for p in around for entry in visible(p))
        lacking = [part for part in classes if not images[part]]
        if has_labels or any(_is_table(entry) for part in lacking for entry in part.rglob("*")):
            return {}  # for `datasets`, which reads labels and tables
        if not any(images.values()):
            continue
        for of_class, of_it in images.items():
            links = [p for p in (of_class, of_class.parent) if p.is_symlink() and p != folder]
            if not of_it or links:
                what = f"{links[0]} is a link" if links else f"{of_class} has no image"
                raise DataError(
                    f"{what}, and a folder of images for each class is wanted; move the images"
                    " there, or remove it"
                )
        found[split] = [glob.escape(str(image)) for of_it in images.values() for image in of_it]
    return found


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in _READERS


def is_image(path: Path) -> bool:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return path.suffix.lower() in ImageFolder.EXTENSIONS


def _folders(folder: Path) -> list[Path]:
    """The sub-folders, without those that `datasets` leaves out, such as __MACOSX."""
    parts = (entry for entry in visible(folder) if entry.is_dir())
    return [part for part in parts if not part.name.startswith("__")]


def visible(folder: Path) -> list[Path]:
    """What is in a folder but hidden files, such as the ._name of a Mac."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


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
        if has_images and (images := _image_files(name)):
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
