"""Image data: folders, arrays, data sets of the hub. Each image is decoded once to find damaged ones.

`datasets` reads a folder, which has one sub-folder of images for each class, or such folders in `train/` and
`validation/`. An .npz has `images`, uint8 (n, h, w) or (n, h, w, c), `labels`, integers (n,), and optionally `names`,
the names of the classes in the order of the integers. Nothing is unpickled.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.errors import DataError
from qpeft_lab.data.labelled import label_name
from qpeft_lab.data.sources import cause, class_columns, is_npz, load_split, parse_source
from qpeft_lab.data.split import Labelled

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS = ("image", "img")


def load_images(source: str, split: str, label_column: str) -> list[Labelled]:
    """The images of a source, as arrays, files or encoded bytes, with the names of their classes.

    Raises DataError for a source that is missing, empty, damaged, or in another format.
    """
    from datasets import Image

    if is_npz(source):
        return _read_npz(parse_source(source).path)
    data_set = load_split(source, split)
    image_column = next((name for name in _COLUMNS if name in data_set.features), None)
    if image_column is None or label_column not in data_set.features:
        wanted = f"one of {', '.join(_COLUMNS)}" if image_column is None else repr(label_column)
        raise DataError(
            f"{source} has the columns {', '.join(data_set.features)}; required: {wanted}. Give a folder with one "
            "sub-folder for each of two or more classes, or set label_column"
        )
    names: Any = class_columns(data_set).get(label_column)
    rows: list[Labelled] = []
    for number, row in enumerate(data_set.cast_column(image_column, Image(decode=False)), start=1):
        content, label = row[image_column]["bytes"] or Path(row[image_column]["path"]), row[label_column]
        rows.append((content, label_name(names[label] if names else label, f"{source}, row {number}")))
        open_image(content, "L")
    return rows


def open_image(content: np.ndarray | Path | bytes, mode: str) -> Image:
    """The image, upright, in a mode of PIL, "L" (grayscale) or "RGB".

    Raises DataError if it cannot be decoded, or has more than 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(content, np.ndarray):
            return Image.fromarray(content).convert(mode)
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode.startswith(("I", "F")):  # PIL would clip the values
                raise ValueError(f"its mode {image.mode} has more than 8 bits")
            return ImageOps.exif_transpose(image).convert(mode)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = content if isinstance(content, Path) else "an image"
        raise DataError(f"cannot read {name}: {error}; convert or remove it") from error


def image_bytes(content: np.ndarray | Path | bytes) -> bytes:
    """The bytes of an image to hash."""
    if isinstance(content, np.ndarray):
        return f"{content.shape}".encode() + content.tobytes()
    return content.read_bytes() if isinstance(content, Path) else content


def _read_npz(path: Path) -> list[Labelled]:
    wanted = "images, uint8 (n, height, width) or (n, height, width, 1, 3 or 4), and labels, integers (n,) from 0"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
            names = arrays["names"].astype(str)[labels] if "names" in arrays else labels
    except Exception as error:  # NumPy and zipfile raise any type for a damaged file, or for a label without a name
        raise DataError(f"cannot read {path} as arrays {wanted}: {cause(error)}") from error
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))
    are_labels = np.issubdtype(labels.dtype, np.integer) and labels.shape == images.shape[:1]
    if images.dtype != np.uint8 or not (images.size and is_image and are_labels) or labels.min() < 0:
        found = " and ".join(f"{array.dtype} {array.shape}" for array in (images, labels))
        raise DataError(f"{path} has arrays {found}; it must have {wanted}")
    pixels = images[..., 0] if images.shape[-1:] == (1,) and images.ndim == 4 else images
    where = f"{path}, class names"
    return [(image, label_name(str(name), where)) for image, name in zip(pixels, names, strict=True)]
