"""Image data: folders, arrays, data sets of the hub. Each image is decoded once to find damaged ones.

A folder has one sub-folder of images for each class, or such folders in `train/` and `validation/` (or `test/`, ...).
An .npz has `images`, uint8 (n, h, w) or (n, h, w, c), `labels`, integers (n,), and optionally `names`, the names of the
classes in the order of the integers. Nothing is unpickled.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.errors import DataError, setting
from qpeft.training.source_names import parse_source
from qpeft.training.sources import class_columns, first_line, load_split, split_names
from qpeft.training.tasks.labelled_data import Labelled, label_name

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "test", "testing")}
_COLUMNS = ("image", "img")


def load_images(source: str, split: str, label_column: str) -> list[Labelled]:
    """The images of a source, as arrays, files or encoded bytes, with the names of their classes.

    Raises DataError for a source that is missing, empty, damaged, or in another format.
    """
    name = parse_source(source)
    if not name.is_local:
        return _read_hub(source, split, label_column)
    path = name.path
    if path.is_dir() and name.config is None:
        return _read_folder(path if name.split is None else _named_folder(path, name.split), split)
    if path.is_file() and path.suffix.lower() == ".npz" and name.is_whole:
        return _read_npz(path)
    raise DataError(
        f"cannot read images from {source}; give a folder with one sub-folder for each class, FOLDER::SPLIT with such "
        "sub-folders in FOLDER/SPLIT, or an .npz with the arrays images and labels"
    )


def has_validation_images(source: str) -> bool:
    """Whether a folder or hub data set has a validation split, and the source names no split itself."""
    name = parse_source(source)
    if name.split is not None:
        return False
    if not name.is_local:
        return "validation" in split_names(source)
    path = name.path
    return path.is_dir() and _split_folder(path, "train") is not None and _split_folder(path, "validation") is not None


def open_image(content: np.ndarray | Path | bytes, mode: str) -> Image:
    """The image, upright, in a mode of PIL, "L" (grayscale) or "RGB"; 16 bits are scaled to 8.

    Raises DataError if it cannot be decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(content, Path) and not content.is_file():  # reading a pipe would block
        raise DataError(f"cannot read {content}: it is not a file; repair or remove it")
    try:
        if isinstance(content, np.ndarray):
            return Image.fromarray(content).convert(mode)
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return _to_eight_bits(ImageOps.exif_transpose(image)).convert(mode)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = content if isinstance(content, Path) else "an image"
        raise DataError(f"cannot read {name}: {error}; repair or remove it") from error


def _to_eight_bits(image: Image) -> Image:
    """Scale 16 bits to 8; PIL would clip integers at 255, and floats at 0 and 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    import PIL.Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values are {values.dtype} from {values.min()} to {values.max()}, not 8 or 16 bits")
    return PIL.Image.fromarray((values // 257 if values.max() > 255 else values).astype(np.uint8))


def image_bytes(content: np.ndarray | Path | bytes) -> bytes:
    """The bytes of an image to hash."""
    if isinstance(content, np.ndarray):
        return f"{content.shape}".encode() + content.tobytes()
    return content.read_bytes() if isinstance(content, Path) else content


def _split_folder(folder: Path, split: str) -> Path | None:
    folders = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    return next((folders[name] for name in _SPLIT_NAMES[split] if name in folders), None)


def _named_folder(path: Path, split: str) -> Path:
    """The sub-folder of a split. Raises DataError if there is none."""
    if not (path / split).is_dir():
        found = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir())) or "none"
        raise DataError(f"{path} has no sub-folder {split!r} for this split; its sub-folders: {found}")
    return path / split


def _read_folder(path: Path, split: str) -> list[Labelled]:
    found = _split_folder(path, split) if _split_folder(path, "train") else path
    if found is None:
        raise DataError(f"{path} has train/ but none of {', '.join(_SPLIT_NAMES['validation'])}; add one")
    rows: list[Labelled] = []
    for folder in sorted(entry for entry in found.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if files and not any(file.parent == folder for file in files):
            inside = ", ".join(sorted({file.relative_to(folder).parts[0] for file in files})[:5])
            raise DataError(
                f"{folder} has images only in its sub-folders ({inside}), so it is not a class; give a folder with one "
                "sub-folder for each class, or with such folders in train/ and validation/"
            )
        rows += [(file, folder.name) for file in files]
    if not rows:
        names = ", ".join(sorted(entry.name for entry in found.iterdir())[:5]) or "nothing"
        raise DataError(
            f"no images in sub-folders of {found}, which contains {names}; give each class a sub-folder of images "
            f"({', '.join(sorted(_SUFFIXES))})"
        )
    for file, _ in rows:
        open_image(file, "L")
    return rows


# raised by NumPy and zipfile for damaged archives and unsupported compression
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zipfile.LargeZipFile)


def _read_npz(path: Path) -> list[Labelled]:
    try:
        with path.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            arrays = {"no name": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path} as arrays: {first_line(error)}") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; its arrays: {', '.join(arrays) or 'none'}")
    images, labels = arrays["images"], arrays["labels"]
    _check_arrays(path, images, labels)
    names = _names(path, arrays.get("names"), labels)
    pixels = images[..., 0] if images.shape[-1:] == (1,) and images.ndim == 4 else images
    return list(zip(pixels, names, strict=True))


def _check_arrays(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))
    if images.dtype != np.uint8 or not is_image:
        raise DataError(
            f"{path}: images are {images.dtype} of shape {images.shape}; they must be uint8 (0 to 255), "
            "(n, height, width) or (n, height, width, channels) with 1, 3 or 4 channels"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; they must be integers, one for each of the "
            f"{len(images)} images"
        )
    if not images.size:
        raise DataError(f"{path} has no images")


def _names(path: Path, names: np.ndarray | None, labels: np.ndarray) -> list[str]:
    if names is None:
        return [str(label) for label in labels]
    if names.ndim != 1 or labels.min() < 0 or labels.max() >= len(names):
        raise DataError(f"{path}: labels run from {labels.min()} to {labels.max()}, and names has shape {names.shape}")
    if names.dtype.kind == "S":  # bytes, as in the files of CIFAR
        names = np.char.decode(names, "utf-8")
    return [label_name(str(names[label]), f"{path}, label {label}") for label in labels]


def _read_hub(source: str, split: str, label_column: str) -> list[Labelled]:
    from datasets import Image

    data_set = load_split(source, split)
    columns = list(data_set.features)
    image_column = next((name for name in _COLUMNS if name in columns), None)
    if image_column is None or label_column not in columns:
        wanted = f"one of {', '.join(_COLUMNS)}" if image_column is None else repr(label_column)
        raise DataError(
            f"{source} has the columns {', '.join(columns)}; required: {wanted}. Set {setting('label_column')}"
        )
    names: Any = class_columns(data_set).get(label_column)
    rows: list[Labelled] = []
    for number, row in enumerate(data_set.cast_column(image_column, Image(decode=False)), start=1):
        content, label = row[image_column]["bytes"], row[label_column]
        rows.append((content, label_name(names[label] if names else label, f"{source}, row {number}")))
        open_image(content, "L")
    return rows
