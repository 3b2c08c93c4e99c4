"""The data of a study, split once into training, validation and test data, as files that all cells read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from qpeft.compare.cell import SplitData
from qpeft.compare.study import Study
from qpeft.errors import ConfigError, DataError, setting
from qpeft.files import read_json, replace_file, replace_folder, write_json, write_text
from qpeft.training.lock import waiting_for
from qpeft.training.source_names import parse_source
from qpeft.training.sources import (
    Columns,
    Row,
    content_hash,
    count_shared,
    has_validation_split,
    load_examples,
    load_rows,
    long_lines,
    references_by_prompt,
)
from qpeft.training.task_types import TASKS
from qpeft.training.tasks.images import has_validation_images, image_bytes, load_images, open_image

PARTS = ("train", "validation", "test")
TEXT_PAIR = "text_pair"  # column of the parts with the second text of a pair

_RECORD = "split.json"
_SOURCES = ("data", "eval_data", "test_data", "general_data")
_GENERAL = "general.jsonl"
_EVERY = 20  # one of 20 documents or examples is validation data, another one is test data


def split_data(study: Study, folder: Path) -> SplitData:
    """Split the study's data and write it to `folder`/data, atomically. A second call returns the same files.

    Without eval_data and test_data, of every 20 documents (prompts with all their answers, examples of a class) the
    10th is test and the 20th validation data; of fewer documents the last twentieth of the text is test data, the one
    before it validation data. Equal documents, and equal examples of a class, count as one.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the folder contains the split of other data.
    """
    place = folder / "data"
    origin = _origin(study)
    if not place.exists():
        with _only_one(folder / ".data.lock"):
            if not place.exists():
                with replace_folder(place) as target:
                    write_json(target / _RECORD, origin | {"notes": _write_parts(study, target)})
    recorded = _check_origin(place, origin)
    files = {part: place / _file_name(study, part) for part in PARTS}
    if _has_general_text(study):
        files["general"] = place / _GENERAL
    sha = hashlib.sha256()
    for path in files.values():
        sha.update(path.read_bytes())
    return SplitData(id=study.data, sha256=sha.hexdigest(), notes=recorded.get("notes", []), **files)


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait for other processes that split the same data."""
    try:
        with waiting_for(lock, lambda: True):
            yield
    finally:
        with suppress(OSError):  # removed by another process
            lock.unlink()


def test_references(path: Path) -> dict[str, list[str]]:
    """The prompts of a split, in order, each with all its answers; empty for texts without prompts."""
    # only at newlines: texts may contain other separators
    return references_by_prompt(map(json.loads, path.read_bytes().splitlines()))


def _check_origin(place: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """The record of the split. Raises ConfigError if it is one of other data."""
    try:
        recorded = {**read_json(place / _RECORD)}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{place} already exists and was not written by a study; name another folder") from error
    was, now = _identity(recorded), _identity(origin)
    for name, value in now.items():
        if was.get(name) != value:
            is_content = name in _SOURCES and recorded.get(name) == origin[name]
            what = "the content of its data" if is_content else f"{name} {recorded.get(name)!r}"
            raise ConfigError(f"{place} was split from other data: {what} has changed since; name another folder")
    return recorded


def _identity(origin: dict[str, Any]) -> dict[str, Any]:
    """`origin` with the hash of each local source instead of its name: it may be moved."""
    given = [name for name in _SOURCES if origin.get(name) is not None]
    hashes = {name: content for name, content in zip(given, origin.get("contents") or (), strict=False) if content}
    return {name: value for name, value in origin.items() if name != "contents"} | hashes


def _origin(study: Study) -> dict[str, Any]:
    """What determines the split: names, columns, and the content of local files."""
    sources = [getattr(study, name) for name in _SOURCES]
    columns = ("text_column", "text_pair_column", "label_column", "prompt_column", "completion_column")
    return {
        **{name: getattr(study, name) for name in ("task", *_SOURCES)},
        **{name: getattr(study.training, name) for name in columns},
        "pad_rows": study.training.pad_rows or None,  # as in the record of a version that lacks it
        "separator": study.training.separator,
        "contents": [_content_of(source) for source in sources if source is not None],
    }


def _content_of(source: str) -> str | None:
    """The hash of a local source, with the split that is read; None for a data set of the hub, or a built-in text."""
    name, sha = parse_source(source), content_hash(source)
    return sha if sha is None or name.is_whole else f"{sha}:{name.config or ''}:{name.split or ''}"


def _has_images(study: Study) -> bool:
    return TASKS[study.task].has_images


def _has_general_text(study: Study) -> bool:
    return study.general_data is not None and study.is_language_model


def _file_name(study: Study, part: str) -> str:
    return f"{part}.npz" if _has_images(study) else f"{part}.jsonl"


def _write_parts(study: Study, target: Path) -> list[str]:
    """Write the parts. Returns what a reader of the report must know of them."""
    notes: list[str] = []
    parts = dict(zip(PARTS, _split(study, notes), strict=True))
    for part, rows in parts.items():
        if not rows:
            raise DataError(f"{study.data} leaves nothing for {part}; give more data, or other data for it")
    for part, rows in parts.items():
        write = _write_images if _has_images(study) else _write_rows
        write(target / _file_name(study, part), rows)
    if _has_general_text(study):
        _write_rows(target / _GENERAL, _read(study, str(study.general_data), "validation"))
    return notes


def _refuse_copy(study: Study, one: str, rows: Sequence[Any], other: str, others: Sequence[Any]) -> list[str]:
    """Raise DataError if all of `others` are also in `rows`; warn if some are, or parts of texts, and return this.

    White space does not count.
    """
    contents = (filter(None, map(_content(study), part)) for part in (rows, others))  # without empty texts
    what, (n_shared, n) = "rows", count_shared(*contents)
    if n_shared == n or (study.is_language_model and _is_part_of_text(rows, others)):
        raise DataError(
            f"the {other} data are a copy or a part of the {one} data: a comparison needs separate data; set "
            f"{setting('eval_data')} and {setting('test_data')} to other data, or leave them out"
        )
    if not n_shared and study.is_language_model:
        what, (n_shared, n) = "long lines", count_shared(long_lines(rows), long_lines(others))
    if not n_shared:
        return []
    found = f"{n_shared} of {n} {what} of the {other} data are also in the {one} data"
    warnings.warn(f"{found}; remove them", stacklevel=1)
    return [f"{found}: results on them describe learned text."]


def _is_part_of_text(rows: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether the texts `others` are one part of the texts `rows`; white space does not count."""
    whole, part = ("".join("".join(row["text"].split()) for row in some if "text" in row) for some in (rows, others))
    return bool(part) and part in whole


def _split(study: Study, notes: list[str]) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and test data. Held-out rows that another source replaces are training data again.

    Appends to `notes`.
    """
    rows = _read(study, study.data, "train")
    has_validation = has_validation_images if _has_images(study) else has_validation_split
    own = study.data if has_validation(study.data) else None
    source, test_source = study.eval_data or own, study.test_data
    if (glue := study.glue) is not None and own is not None:
        source, test_source = study.eval_data, study.test_data or own
        if study.test_data is None:
            notes.append(
                f"GLUE's test labels are withheld: its split {glue.validation} is the test data here. A part of "
                "its training data is validation data, for learning rates and checkpoints."
            )
    given_validation = _read(study, source, "validation") if source else None
    given_test = _read(study, test_source, "validation") if test_source else None
    given = {"training": rows, "validation": given_validation, "test": given_test}
    for one, other in combinations((part for part in given if given[part] is not None), 2):
        notes += _refuse_copy(study, one, given[one] or [], other, given[other] or [])
    if given_validation is not None and given_test is not None:
        return rows, given_validation, given_test
    groups = _groups(study, rows)
    train, validation, test = _split_groups(groups) if len(groups) >= _EVERY else _split_text(study, rows)
    if given_test is not None:
        return train + test, validation, given_test
    if given_validation is not None:
        return train + validation, given_validation, test
    return train, validation, test


def _read(study: Study, source: str, split: str) -> list[Any]:
    training = study.training
    if study.is_language_model:
        names = (training.text_column, training.prompt_column, training.completion_column)
        keep_empty = training.pad_rows or training.separator is not None
        return load_examples(source, split, Columns(*names, keep_empty=keep_empty, by_line=training.pad_rows))
    if _has_images(study):
        return load_images(source, split, training.label_column)
    columns = {training.text_column: "text", training.text_pair_column: TEXT_PAIR, training.label_column: "label"}
    names = {column: name for column, name in columns.items() if column is not None}
    rows = load_rows(source, split, tuple(names))
    if rows and (missing := [column for column in names if column not in rows[0]]):
        found = ", ".join(map(str, rows[0]))
        wanted = ", ".join(f"training.{name}_column" for name in names.values())
        raise DataError(f"{source} has the columns {found}, and no {missing[0]!r}; set the study's {wanted}")
    found = [{name: row.get(column) for column, name in names.items()} for row in rows]
    classes = () if (glue := study.glue) is None else glue.classes
    for row in found:
        if row["label"] in classes:
            row["label"] = classes.index(row["label"])  # a run sorts classes: this is GLUE's order
    return found


def _groups(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    """Rows that must stay together: equal documents or examples, the answers to a prompt. Classes are sorted."""
    if study.is_language_model:
        return _group_by(rows, _document)
    if _has_images(study):
        return sorted(_group_by(rows, lambda row: image_bytes(row[0])), key=lambda group: str(group[0][1]))
    return sorted(_group_by(rows, _texts), key=lambda group: str(group[0]["label"]))


def _content(study: Study) -> Callable[[Any], Any]:
    """The part of a row by which copies are found."""
    if study.is_language_model:
        return lambda row: " ".join(row["text"].split()) if "text" in row else json.dumps(row, sort_keys=True)
    if _has_images(study):
        return lambda row: hashlib.sha256(image_bytes(row[0])).digest()
    return lambda row: "\n".join(" ".join(text.split()) for text in _texts(row)).strip()


def _texts(row: Row) -> tuple[str, ...]:
    """The text of a classification, or its pair of texts."""
    return tuple(str(row[name]) for name in ("text", TEXT_PAIR) if name in row)


def _document(row: Any) -> Any:
    if "prompt" in row:
        return row["prompt"]
    if row.get("text") == "":
        return object()  # empty texts need not stay together
    return row["text"] if "text" in row else json.dumps(row["messages"], sort_keys=True)


def _group_by(rows: Sequence[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _split_groups(groups: Sequence[list[Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    parts: tuple[list[Any], list[Any], list[Any]] = [], [], []
    for number, group in enumerate(groups, start=1):
        turn = number % _EVERY
        parts[1 if turn == 0 else 2 if turn == _EVERY // 2 else 0].extend(group)
    return parts


def _split_text(study: Study, rows: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    if not study.is_language_model or "text" not in rows[0] or study.training.pad_rows:
        return list(rows), [], []
    separator = study.training.separator
    text = ("\n\n" if separator is None else separator).join(row["text"] for row in rows)
    first, second = (_next_blank(text, len(text) * share // _EVERY) for share in (_EVERY - 2, _EVERY - 1))
    train, validation, test = (
        [{"text": part}] if part.strip() else [] for part in (text[:first], text[first:second], text[second:])
    )
    return train, validation, test


def _next_blank(text: str, place: int) -> int:
    """The end of the line, or else of the word, at or after `place`."""
    for blank in ("\n", " "):
        if 0 <= (found := text.find(blank, place)) < place + 2000:
            return found + 1
    return place


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_images(path: Path, rows: Sequence[tuple[Any, str]]) -> None:
    """uint8 (n, h, w, 3), all in the size of the first image; the model's processor resizes them anyway."""
    first = open_image(rows[0][0], "RGB")
    images = np.stack([np.asarray(open_image(content, "RGB").resize(first.size)) for content, _ in rows])
    names = sorted({name for _, name in rows})
    labels = np.array([names.index(name) for _, name in rows])
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels, names=np.array(names))
