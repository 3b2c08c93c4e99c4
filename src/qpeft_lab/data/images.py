"""Image data: folders, parquet files, data sets of the hub. Each image is decoded once to find
damaged ones.

`datasets` reads them. A folder has one sub-folder of images for each class, or such folders in
`train/` and `validation/`. A parquet file has the columns of a data set of images, which
`write_images` writes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from os.path import abspath
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from qpeft.errors import DataError, DataWarning
from qpeft.files import replace_file
from qpeft_lab.data.files import class_columns, class_name, is_image, load_file, visible
from qpeft_lab.data.folders import SPLIT_FOLDERS
from qpeft_lab.data.labelled import Labelled, label_name
from qpeft_lab.data.names import parse_source
from qpeft_lab.data.sources import load_split

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS = ("image", "img")


def load_images(source: str, split: str, label_column: str) -> list[Labelled]:
    """The images of a source, as files or encoded bytes, with the names of their classes.

    Raises DataError for a source that is missing, empty, damaged, or in another format.
    """
    from datasets import Image

    name = parse_source(source)
    data_set = (
        load_file(name.path)
        if name.is_local and name.path.is_file()
        else load_split(source, split, has_images=True)
    )
    columns = data_set.features or {}  # none of a file of text
    image_column = next((name for name in _COLUMNS if name in columns), None)
    if image_column is None or label_column not in columns:
        wanted = f"one of {', '.join(_COLUMNS)}" if image_column is None else repr(label_column)
        raise DataError(
            f"{source} has the columns {', '.join(columns)}; required: {wanted}. Give a folder with"
            " one sub-folder for each of two or more classes, or set label_column"
        )
    names: Any = class_columns(data_set).get(label_column)
    rows: list[Labelled] = []
    for number, row in enumerate(data_set.cast_column(image_column, Image(decode=False)), start=1):
        image = row[image_column] or {}
        content = image.get("bytes") or image.get("path")
        if content is None:
            raise DataError(
                f"{source}, row {number}: there is no image; give one, or remove the row"
            )
        if isinstance(content, str):
            content = Path(content)
        label = row[label_column]
        given = class_name(label, names) if names else label
        name_of_class = label_name(given, f"{source}, row {number}")
        rows.append((content, name_of_class))
        open_image(content, "L")
    if "[" not in (name.split or ""):  # a part of the images
        _note_others(source, [content for content, _ in rows if isinstance(content, Path)])
        if name.is_local and name.path.is_dir():
            _note_folders(source, name.path, rows)
    return rows


def _note_folders(source: str, path: Path, rows: Sequence[Labelled]) -> None:
    """Warn of folders with images in `path` of which none was read, unless they are splits."""
    # as `datasets` makes paths absolute, and leaves links
    path = Path(abspath(path))  # noqa: PTH100
    read = {content for content, _ in rows if isinstance(content, Path)}
    unread = [
        folder.name
        for folder in visible(path)
        if folder.is_dir()
        and folder.name.lower() not in SPLIT_FOLDERS
        and read.isdisjoint(images := {*filter(is_image, folder.rglob("*"))})
        and images
    ]
    if unread:
        found = f"images in {', '.join(unread)} of {source} are not read"
        warnings.warn(
            DataWarning(f"{found}: they are in no folder of a class, or of a split"), stacklevel=3
        )


def _note_others(source: str, images: Sequence[Path]) -> None:
    """Warn of what is next to the images and was not read, such as a format that PIL has not, and
    of images next to their folders.
    """
    folders = {image.parent for image in images}
    others = {entry for folder in folders for entry in visible(folder)}
    above = {folder.parent for folder in folders}
    others |= {entry for folder in above for entry in visible(folder) if is_image(entry)}
    others -= {*images}
    names = sorted(entry.name for entry in others if not entry.name.startswith("metadata."))
    if names:
        listed = shorten(", ".join(names), 80, placeholder=", ...")
        found = f"{len(names)} names in the folders of {source} are not read as images: {listed}"
        warnings.warn(DataWarning(found), stacklevel=3)


def write_images(path: Path, rows: Sequence[Labelled]) -> None:
    """Write a parquet file that `load_images` reads, atomically; an image may also be an array,
    uint8 (h, w[, c]).
    """
    from datasets import ClassLabel, Dataset, Features, Image

    columns = {"image": Image(), "label": ClassLabel(names=sorted({name for _, name in rows}))}
    examples = [{"image": image_bytes(content), "label": name} for content, name in rows]
    with replace_file(path) as temporary:
        Dataset.from_list(examples, features=Features(columns)).to_parquet(temporary)


def open_image(content: Path | bytes, mode: str) -> Image:
    """The image, upright, in a mode of PIL, "L" (grayscale) or "RGB".

    Raises DataError if it cannot be decoded, or has more than 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode.startswith(("I", "F")):  # PIL would clip the values
                raise ValueError(f"its mode {image.mode} has more than 8 bits")
            return ImageOps.exif_transpose(image).convert(mode)
    except (
        OSError,
        UnidentifiedImageError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        name = content if isinstance(content, Path) else "an image"
        raise DataError(f"cannot read {name}: {error}; convert or remove it") from error


def image_bytes(content: Any) -> Any:
    """The bytes of an image to hash."""
    return content.read_bytes() if isinstance(content, Path) else content
