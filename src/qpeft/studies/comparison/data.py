"""A study's data, split once: what every cell trains on, chooses by and is tested on, in three files of its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qpeft.errors import DataError
from qpeft.files import write_text
from qpeft.studies.comparison.study import Study
from qpeft.training.sources import Columns, Row, has_validation_split, load_examples, load_rows
from qpeft.training.tasks.images import has_validation_images, load_images, open_image

PARTS = ("train", "validation", "test")

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
    """Read the study's data and write it, split, under `folder`/data; what lies there already is kept.

    Without eval_data and test_data, of every 20 documents (prompts with all their answers, examples of a class) the
    10th is test and the 20th validation; of fewer documents the last twentieth of the text is test, the one before it
    validation. Raises DataError if the data cannot be used.
    """
    suffix = ".npz" if study.task == "image-classification" else ".jsonl"
    paths = [folder / "data" / f"{part}{suffix}" for part in PARTS]
    if not all(path.exists() for path in paths):
        parts = _split(study)
        for path, rows, name in zip(paths, parts, PARTS, strict=True):
            if not rows:
                raise DataError(f"{study.data} leaves nothing for {name}; give more data, or other data for it")
            _write(path, rows)
    general = _general(study, folder)
    sha = hashlib.sha256()
    for path in (*paths, *([general] if general else [])):
        sha.update(path.read_bytes())
    return Splits(*paths, general=general, sha256=sha.hexdigest())


def _general(study: Study, folder: Path) -> Path | None:
    if study.general_data is None or study.task != "causal-lm":
        return None
    path = folder / "data" / "general.jsonl"
    if not path.exists():
        _write(path, _rows(study, study.general_data, "validation"))
    return path


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
    found = has_validation_images if study.task == "image-classification" else has_validation_split
    return found(study.data)


def _rows(study: Study, source: str, split: str) -> list[Any]:
    training = study.training
    if study.task == "causal-lm":
        columns = Columns(training.text_column, training.prompt_column, training.completion_column)
        return load_examples(source, split, columns)
    if study.task == "image-classification":
        return load_images(source, split, training.label_column)
    names = (training.text_column, training.label_column)
    return [{"text": row[names[0]], "label": row[names[1]]} for row in load_rows(source, split, names)]


def _groups(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    """What must not be torn apart: a document; a prompt's answers. Classes in turn, so that each has its share."""
    if study.task != "causal-lm":
        label = (lambda row: row["label"]) if study.task == "text-classification" else (lambda row: row[1])
        return [[row] for row in sorted(rows, key=lambda row: str(label(row)))]
    if "prompt" not in rows[0]:
        return [[row] for row in rows]
    prompts: dict[str, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(row)
    return list(prompts.values())


def _of_groups(groups: Sequence[list[Any]]) -> list[list[Any]]:
    parts: list[list[Any]] = [[], [], []]
    for number, group in enumerate(groups, start=1):
        turn = number % _EVERY
        parts[1 if turn == 0 else 2 if turn == _EVERY // 2 else 0].extend(group)
    return parts


def _of_text(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    if study.task != "causal-lm" or "text" not in rows[0]:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels, names=np.array(names))
    temporary.replace(path)
