"""The data of a study, split once into training, validation and test data, as files that all cells
read.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from qpeft.errors import DataError
from qpeft.files import read_json, write_json, write_text
from qpeft.folders import replace_folder
from qpeft_lab.compare.study import Study
from qpeft_lab.data.folders import content_hash
from qpeft_lab.data.images import image_bytes, load_images, write_images
from qpeft_lab.data.labelled import load_labelled_texts
from qpeft_lab.data.names import parse_source
from qpeft_lab.data.sources import has_validation_split, load_examples
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.files import json_line, locked
from qpeft_lab.settings import COLUMNS, SharedSettings

PARTS = ("train", "validation", "test")
TEXT_PAIR = "text_pair"  # column of the parts with the second text of a pair

_NOTES = "notes.json"
_EVERY = 20  # one of 20 documents or examples is validation data, another one is test data
_LONG_LINE = 8  # words
_COPY = 0.9  # of the texts that are also in the training data: held-out data are a copy


def split_data(study: Study, folder: Path) -> tuple[dict[str, Path], str, list[str]]:
    """Split the study's data and write it to a folder in `folder`/data, which is named after what
    determines the split.

    Returns the file of each part, the hash over their content, and what a reader of the report must
    know. A second call returns the same files.

    Without eval_data and test_data, of every 20 documents (prompts with all their answers, examples
    of a class) the 10th is test and the 20th validation data; of fewer documents the last twentieth
    of the text is test data, the one before it validation data. Equal documents, and equal examples
    of a class, count as one.

    Raises:
        DataError: the data cannot be used.
        ConfigError: another process uses the folder.
    """
    origin = hashlib.sha256(json.dumps(_origin(study)).encode()).hexdigest()
    place = folder / "data" / origin[:12]
    if not place.exists():
        parts, notes = _split(study)  # raises before the folder is made
        with locked(folder), replace_folder(place) as target:
            write_parts(study, parts, target)
            write_json(target / _NOTES, notes)
    paths = {part: place / part_file(study, part) for part in PARTS}
    sha = hashlib.sha256(b"".join(path.read_bytes() for path in paths.values()))
    return paths, sha.hexdigest(), read_json(place / _NOTES)


def _origin(study: Study) -> dict[str, Any]:
    """What determines the split: the content of local files, which may be moved, or names, and
    columns.
    """
    run = study.run
    given = {
        "data": run.data,
        "eval_data": run.eval_data,
        "test_data": study.test_data,
    }
    content = {"task": run.task}
    content |= {name: source and _content_of(source) for name, source in given.items()}
    content |= {name: getattr(run, name) for name in (*COLUMNS, "pad_rows")}
    return content


def _content_of(source: str) -> str:
    """The hash of a local source, with the split that is read; the name of a data set of the hub or
    a built-in text.
    """
    name = parse_source(source)
    sha = content_hash(source)
    if sha is None:
        return source
    task = "" if name.glue is None else source.partition(":")[0]  # its splits and classes
    is_whole = name.is_whole and not task
    return sha if is_whole else f"{sha}:{name.config or ''}:{name.split or ''}{task}"


def on_parts(run: SharedSettings, **changes: Any) -> SharedSettings:
    """The run with other fields, and with the columns of the parts instead of those of the data."""
    columns = {name: getattr(SharedSettings, name) for name in COLUMNS}
    columns["text_pair_column"] = run.text_pair_column and TEXT_PAIR
    return replace(run, **columns, **changes)


def part_file(study: Study, part: str) -> str:
    """The name of the file of a part."""
    return f"{part}.parquet" if TASKS[study.run.task].has_images else f"{part}.jsonl"


def _refuse_copy(
    study: Study, part: str, rows: Sequence[Any], other: str, others: Sequence[Any]
) -> list[str]:
    """Raise DataError if the rows `others` of part `other` are also in `rows`, those of `part`;
    warn if some are, and return this.

    Texts are compared by their long lines, and by the whole if they have none. White space does not
    count.
    """
    known = {text for row in rows for text in _texts(study, row)}
    is_known = [text in known for row in others for text in _texts(study, row)]
    n_shared = sum(is_known)
    n = len(is_known)
    name = part.replace("train", "training")
    if n_shared > _COPY * n:
        raise DataError(
            f"the {other} data are a copy or a part of the {name} data: a comparison needs separate"
            " data; set eval_data and test_data to other data, or leave them out"
        )
    if not n_shared:
        return []
    shared = f"{n_shared} of {n} texts of the {other} data are also in the {name} data"
    warnings.warn(f"{shared}; remove them", stacklevel=1)
    return [f"{shared}: results on them describe learned text."]


def _texts(study: Study, row: Any) -> list[Any]:
    """What of a row must not be in two parts of the data."""
    lines = (
        [line.split() for line in row.get("text", "").splitlines()]
        if study.run.is_language_model
        else []
    )
    # too long to be equal by chance
    long = [" ".join(words) for words in lines if len(words) >= _LONG_LINE]
    if "messages" in row:  # each answer with all before it: another row may go on after it
        said = row["messages"]
        ends = [n for n, each in enumerate(said, start=1) if each["role"] == "assistant"]
        return [_text_of(said[:end]) for end in ends]
    return long or list(filter(None, [_content(study, row)]))


def _split(study: Study) -> tuple[dict[str, list[Any]], list[str]]:
    """The parts, and notes on them. Held-out rows that another source replaces are training data
    again.
    """
    rows = _read(study, study.run.data, "train")
    notes: list[str] = []
    own = (
        study.run.data
        if has_validation_split(study.run.data, TASKS[study.run.task].has_images)
        else None
    )
    validation_source = study.run.eval_data or own
    test_source = study.test_data
    if (glue := study.run.glue) is not None and own is not None:
        validation_source = study.run.eval_data
        test_source = study.test_data or own
        if study.test_data is None:
            notes.append(
                f"GLUE's test labels are withheld: its split {glue.validation} is the test data"
                " here. A part of its training data is validation data, for learning rates and"
                " checkpoints."
            )
    given = {"train": rows}
    for part, source in (("validation", validation_source), ("test", test_source)):
        if source:
            given[part] = _read(study, source, "validation")
    for part, other in combinations(given, 2):
        notes += _refuse_copy(study, part, given[part], other, given[other])
    if len(given) < len(PARTS):
        groups = _groups(study, rows)
        parts = _split_groups(groups) if len(groups) >= _EVERY else _split_text(study, groups)
        left = [row for part in given if part != "train" for row in parts[part]]
        given = parts | given | {"train": parts["train"] + left}
    if empty := [part for part in PARTS if not given[part]]:
        raise DataError(
            f"{study.run.data} leaves nothing for {empty[0]}; give more data, or other data for it"
        )
    return {part: given[part] for part in PARTS}, notes


def _read(study: Study, source: str, split: str) -> list[Any]:
    run = study.run
    if run.is_language_model:
        return load_examples(source, split, run)
    if TASKS[study.run.task].has_images:
        return [
            {"image": image, "label": name}
            for image, name in load_images(source, split, run.label_column)
        ]
    rows = load_labelled_texts(source, split, run, lambda label, where: label)
    # a run sorts classes: this is GLUE's order
    classes = () if (glue := study.run.glue) is None else glue.classes
    names = ("text", TEXT_PAIR)
    return [
        {
            **dict(zip(names, text, strict=False)),
            "label": classes.index(label) if label in classes else label,
        }
        for text, label in rows
    ]


def _groups(study: Study, rows: Sequence[Any]) -> list[list[Any]]:
    """Rows that must stay together: equal documents or examples, the answers to a prompt. Classes
    are sorted.
    """
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        # empty texts need not stay together
        is_empty = study.run.is_language_model and row.get("text") == ""
        groups.setdefault(
            object() if is_empty else _content(study, row, of_prompt=True), []
        ).append(row)
    if study.run.is_language_model:
        return list(groups.values())
    return sorted(groups.values(), key=lambda group: str(group[0]["label"]))


def _content(study: Study, row: Any, of_prompt: bool = False) -> Any:
    """The part of a row by which copies are found; `of_prompt`: without the answer. White space
    does not count.
    """
    if "image" in row:
        return hashlib.sha256(image_bytes(row["image"])).digest()
    if study.run.is_language_model and "text" not in row:
        return _text_of(_prompt(row) if of_prompt else row)
    return "\n".join(
        " ".join(str(row[name]).split()) for name in ("text", TEXT_PAIR) if name in row
    ).strip()


def _prompt(row: Any) -> Any:
    """What is before the answer of a row; of a conversation what is up to its first question, so
    that rows with one and with more of its turns have the same.
    """
    if "prompt" in row:
        return row["prompt"]
    said = row["messages"]
    asked = next((n for n, each in enumerate(said, start=1) if each["role"] == "user"), len(said))
    return said[:asked]


def _text_of(value: Any) -> str:
    """Of texts, messages and lists of them; white space does not count."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        value = {name: _text_of(each) for name, each in value.items()}
    elif isinstance(value, list):
        value = list(map(_text_of, value))
    return json.dumps(value, sort_keys=True)


def _split_groups(groups: Sequence[list[Any]]) -> dict[str, list[Any]]:
    parts: dict[str, list[Any]] = {part: [] for part in PARTS}
    for number, group in enumerate(groups, start=1):
        turn = number % _EVERY
        part = "train"
        if turn == 0:
            part = "validation"
        elif turn == _EVERY // 2:
            part = "test"
        parts[part].extend(group)
    return parts


def _split_text(study: Study, groups: Sequence[list[Any]]) -> dict[str, list[Any]]:
    rows = [row for group in groups for row in group]
    if not study.run.is_language_model or "text" not in rows[0] or study.run.pad_rows:
        return {"train": rows, "validation": [], "test": []}
    text = "\n\n".join(group[0]["text"] for group in groups)  # a copy could be in another part
    words = re.findall(r"\S{1,99}\s*|\s+", text)
    first, second = (len(words) * share // _EVERY for share in (_EVERY - 2, _EVERY - 1))
    parts = {
        "train": words[:first],
        "validation": words[first:second],
        "test": words[second:],
    }
    texts = {part: "".join(words_of_part) for part, words_of_part in parts.items()}
    return {part: [{"text": text}] if text.strip() else [] for part, text in texts.items()}


def write_parts(study: Study, parts: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Write the rows of each part: lines of JSON, or images."""
    for part, rows in parts.items():
        path = folder / part_file(study, part)
        if TASKS[study.run.task].has_images:
            write_images(path, [(row["image"], row["label"]) for row in rows])
        else:
            write_text(path, "".join(map(json_line, rows)))
