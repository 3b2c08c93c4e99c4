"""A study's data, split once: what every cell trains on, chooses by and is tested on, in three files of its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qpeft.compare.study import Study
from qpeft.errors import ConfigError, DataError
from qpeft.files import read_json, replace_file, replace_folder, write_json, write_text
from qpeft.training.sources import (
    BUILT_IN,
    Columns,
    has_validation_split,
    is_local,
    load_examples,
    load_rows,
    local_path,
)
from qpeft.training.task_types import TASKS
from qpeft.training.tasks.images import has_validation_images, image_bytes, load_images, open_image

PARTS = ("train", "validation", "test")

_RECORD = "split.json"
_GENERAL = "general.jsonl"
_EVERY = 20  # documents, examples: one of so many is validation, another is test


@dataclass(frozen=True)
class Splits:
    """The three files, the general text where there is one, and the hash over their content."""

    train: Path
    validation: Path
    test: Path
    general: Path | None
    sha256: str


def split_data(study: Study, folder: Path) -> Splits:
    """Read the study's data and write it, split, under `folder`/data, whole or not at all; a second call finds it.

    Without eval_data and test_data, of every 20 documents (prompts with all their answers, examples of a class) the
    10th is test and the 20th validation; of fewer documents the last twentieth of the text is test, the one before it
    validation. Equal documents, and equal examples of a class, count as one. Raises DataError if the data cannot be
    used, ConfigError if what lies there was split from other data.
    """
    place = folder / "data"
    asked = _asked(study)
    if not _is_there(place, asked):
        with replace_folder(place) as target:
            _write_parts(study, target)
            write_json(target / _RECORD, asked)
    names = [f"{part}{_suffix(study)}" for part in PARTS]
    general = place / _GENERAL if study.general_data and study.is_language_model else None
    sha = hashlib.sha256()
    for path in (*(place / name for name in names), *([general] if general else [])):
        sha.update(path.read_bytes())
    return Splits(*(place / name for name in names), general=general, sha256=sha.hexdigest())


def _is_there(place: Path, asked: dict[str, Any]) -> bool:
    if not place.exists():
        return False
    try:
        recorded = {**read_json(place / _RECORD)}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{place} is there already, and no study split it; name another folder") from error
    for name in asked:
        if recorded.get(name) != asked[name]:
            what = "the content of its data" if name == "contents" else f"{name} {recorded.get(name)!r}"
            raise ConfigError(f"{place} was split from other data: {what} has changed since; name another folder")
    return True


def _asked(study: Study) -> dict[str, Any]:
    """What decides the split: names, columns, and the content of local files."""
    sources = [study.data, study.eval_data, study.test_data, study.general_data]
    columns = ("text_column", "label_column", "prompt_column", "completion_column")
    return {
        **{name: getattr(study, name) for name in ("task", "data", "eval_data", "test_data", "general_data")},
        **{name: getattr(study.training, name) for name in columns},
        "contents": [_content(source) for source in sources if source is not None],
    }


def _content(source: str) -> str | None:
    """Hash of a local source's files; None for a data set of the hub, or a built-in text."""
    if source in BUILT_IN or not is_local(source):
        return None
    path = local_path(source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()


def _write_parts(study: Study, target: Path) -> None:
    for part, rows in zip(PARTS, _split(study), strict=True):
        if not rows:
            raise DataError(f"{study.data} leaves nothing for {part}; give more data, or other data for it")
        _write(target / f"{part}{_suffix(study)}", rows)
    if study.general_data is not None and study.is_language_model:
        _write(target / _GENERAL, _rows(study, study.general_data, "validation"))


def _suffix(study: Study) -> str:
    return ".npz" if TASKS[study.task].has_images else ".jsonl"


def test_references(path: Path) -> dict[str, list[str]]:
    """The prompts of a split, in order, each with all its answers; none for texts without prompts."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "prompt" in row:
            found.setdefault(row["prompt"], []).append(row["completion"].strip())
    return found


def _split(study: Study) -> list[list[Any]]:
    rows = _rows(study, study.data, "train")
    validation_source = study.eval_data or (study.data if _has_validation(study) else None)
    named = [_rows(study, source, "validation") if source else None for source in (validation_source, study.test_data)]
    groups = _groups(study, rows)
    train, validation, test = _of_groups(groups) if len(groups) >= _EVERY else _of_text(study, rows)
    given_validation, given_test = named
    if given_validation is not None and given_test is not None:
        return [rows, given_validation, given_test]
    if given_test is not None:
        return [train + test, validation, given_test]
    if given_validation is not None:
        return [train + validation, given_validation, test]
    return [train, validation, test]


def _has_validation(study: Study) -> bool:
    found = has_validation_images if TASKS[study.task].has_images else has_validation_split
    return found(study.data)


def _rows(study: Study, source: str, split: str) -> list[Any]:
    training = study.training
    if study.is_language_model:
        columns = Columns(training.text_column, training.prompt_column, training.completion_column)
        return load_examples(source, split, columns)
    if TASKS[study.task].has_images:
        return load_images(source, split, training.label_column)
    names = (training.text_column, training.label_column)
    rows = load_rows(source, split, names)
    if rows and (missing := [name for name in names if name not in rows[0]]):
        found = ", ".join(map(str, rows[0]))
        raise DataError(
            f"{source} has the columns {found}, and no {missing[0]!r}; the study's training.text_column and "
            "training.label_column name others"
        )
    return [{"text": row[names[0]], "label": row[names[1]]} for row in rows]


def _groups(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    """What must not be torn apart: equal documents or examples; a prompt's answers. Classes stand in turn."""
    if TASKS[study.task].has_images:
        found = _alike(rows, lambda row: image_bytes(row[0]))
        return sorted(found, key=lambda group: str(group[0][1]))
    if study.task == "text-classification":
        found = _alike(rows, lambda row: row["text"])
        return sorted(found, key=lambda group: str(group[0]["label"]))
    return _alike(rows, _document)


def _document(row: Any) -> Any:
    """What a row of a language model's data is known by."""
    if "prompt" in row:
        return row["prompt"]
    return row["text"] if "text" in row else json.dumps(row["messages"], sort_keys=True)


def _alike(rows: Sequence[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _of_groups(groups: Sequence[list[Any]]) -> list[list[Any]]:
    parts: list[list[Any]] = [[], [], []]
    for number, group in enumerate(groups, start=1):
        turn = number % _EVERY
        parts[1 if turn == 0 else 2 if turn == _EVERY // 2 else 0].extend(group)
    return parts


def _of_text(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    if not study.is_language_model or "text" not in rows[0]:
        return [list(rows), [], []]
    text = "\n\n".join(row["text"] for row in rows)
    cuts = [_at_blank(text, len(text) * share // _EVERY) for share in (_EVERY - 2, _EVERY - 1)]
    parts = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
    return [[{"text": part}] if part.strip() else [] for part in parts]


def _at_blank(text: str, place: int) -> int:
    """The end of the line, or else of the word, at or after `place`: no word is cut in two."""
    for blank in ("\n", " "):
        if 0 <= (found := text.find(blank, place)) < place + 2000:
            return found + 1
    return place


def _write(path: Path, rows: Sequence[Any]) -> None:
    if path.suffix == ".npz":
        _write_images(path, rows)
        return
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_images(path: Path, rows: Sequence[tuple[Any, str]]) -> None:
    """uint8 (n, h, w, 3); images of other sizes than the first are brought to it by the model's processor anyway."""
    first = open_image(rows[0][0], "RGB")
    images = np.stack([np.asarray(open_image(content, "RGB").resize(first.size)) for content, _ in rows])
    names = sorted({name for _, name in rows})
    labels = np.array([names.index(name) for _, name in rows])
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels, names=np.array(names))
