"""Folders of data: the files that are read together, those of a split, images by class. What is not
read is named, and what should not be read together is refused.
"""

from __future__ import annotations

import glob
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from qpeft.errors import DataError, DataWarning
from qpeft.files import file_hash
from qpeft_lab.data.files import READERS, Row, is_image, is_table, read_file, visible
from qpeft_lab.data.names import BUILT_IN, SourceName, parse_source

_SPLIT = re.compile(
    r"(?<![a-z])(train|validation|valid|val|dev|test|eval)(ing|uation|set|data)?(?![a-z])",
    re.IGNORECASE,
)
_TRAIN = re.compile("train|trn", re.IGNORECASE)
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


def files_of_splits(name: SourceName) -> dict[str, list[Path]]:
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
    for file in filter(is_table, visible(name.path)):
        if file.is_file() and (match := _SPLIT.search(file.stem)):
            of_word = SPLIT_FOLDERS[match[1].lower()]
            splits.setdefault(of_word, []).append(file)
    return splits


def read_splits(source: str, of_splits: Mapping[str, list[Path]], by_line: bool) -> list[Row]:
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
                f" {', '.join(READERS)}"
            ),
            stacklevel=2,
        )
    for split in wanted - of_splits.keys():
        raise DataError(f"{source} has no split {split}; it has {', '.join(sorted(of_splits))}")
    of_files = {
        split: {file: read_file(file, by_line) for file in of_splits[split]} for split in wanted
    }
    for split in wanted:
        _note_together(f"{name.name}::{split}", of_splits[split], of_splits[split])
        refuse_other_columns(of_files[split])
    rows = {
        split: [row for of_file in of_files[split].values() for row in of_file] for split in wanted
    }
    lengths = {split: len(of_split) for split, of_split in rows.items()}
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(f"cannot read {source}: {error}") from error
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]


def refuse_splits(source: str, files: Sequence[Path]) -> None:
    """Raise DataError for a folder that is divided into splits, such as train.csv and test.csv.

    Warns of files that may be such splits, under other names.
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
            one = f"{parse_source(source).name}::train"
            raise DataError(
                f"{source} has files of the splits {', '.join(sorted(of_name))}, which would be read"
                f" together; name one, such as {one}, or the file of one, such as {files[0]}"
            )
    _note_together(source, [file for file in files if _TRAIN.search(file.stem)], files)


def _note_together(source: str, named: Sequence[Path], files: Sequence[Path]) -> None:
    """Warn if some of the files that are read together are named after a split, and others are not
    named like them, such as train.csv and holdout.csv; train-00.csv and train-01.csv are.
    """
    names = {re.sub(r"[\W\d_]", "", file.stem).lower() for file in files}
    if named and len(names) > 1:
        others = [file for file in files if file not in named]
        listed = ", ".join(file.name for file in [*named, *others])
        listed = shorten(listed, 80, placeholder=", ...")
        found = f"the files of {source} are read together, although some are named after splits"
        warnings.warn(
            DataWarning(f"{found} ({listed}); if they are, name one of them"), stacklevel=2
        )


def refuse_other_columns(of_files: Mapping[Path, list[Row]]) -> None:
    """Raise DataError if tables of a folder have different columns, as without a line of names."""
    columns = {
        file: rows[0].keys()
        for file, rows in of_files.items()
        if rows and READERS[file.suffix.lower()][0] == "csv"
    }
    for file, names in columns.items():
        first = next(iter(columns))
        if names != columns[first]:
            raise DataError(
                f"{first} and {file} have different columns ({', '.join(columns[first])}; "
                f"{', '.join(names)}); give each table of the folder the same first line"
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


def files_of(path: Path, split: str | None = None) -> list[Path]:
    """The file itself, or the supported files of a folder by name: those of a split, such as
    `train-00000.parquet`.
    """
    allowed = f"files must end in one of {', '.join(READERS)}"
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise DataError(f"cannot read {path}: its suffix is {path.suffix!r}; {allowed}")
        return [path]
    content = visible(path)  # `content_hash` leaves hidden files out as well
    files = [file for file in content if file.suffix.lower() in READERS]
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


def image_files(name: SourceName) -> dict[str, list[str]]:
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
        if has_labels or any(is_table(entry) for part in lacking for entry in part.rglob("*")):
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


def _folders(folder: Path) -> list[Path]:
    """The sub-folders, without those that `datasets` leaves out, such as __MACOSX."""
    parts = (entry for entry in visible(folder) if entry.is_dir())
    return [part for part in parts if not part.name.startswith("__")]
