"""The files of a base model, checked before torch is imported: what is missing or half copied."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from qpeft.errors import InputError
from qpeft.files import read_json
from qpeft_lab.user_files import explain_missing, looks_like_path

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_COPY_AGAIN = "copy or download it again"


def check_base_files(model: str) -> None:
    """Raise InputError if `model` is a path without a model, or a folder whose weights are
    incomplete. A hub id passes.
    """
    folder = Path(model).expanduser()
    if looks_like_path(model) and not folder.exists():
        raise InputError(f"no model folder {model}: {explain_missing(model)}")
    if folder.is_file() and folder.suffix != ".gguf":
        raise InputError(f"{model} is a file; give the folder of a base model, or a GGUF file")
    if not (folder / "config.json").is_file():
        if folder.is_dir():
            raise InputError(f"{model} has no config.json: it is no base model, or a part of one")
        return
    files = [name for name in _WEIGHTS if (folder / name).is_file()]
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file() and not files:
            files = sorted(set(_read(index).get("weight_map", {}).values()))
    lacking = [name for name in files if not (folder / name).is_file()]
    halves = [entry.name for entry in folder.iterdir() if entry.suffix in _UNFINISHED]
    if lacking or not files:
        what = f"lacks {', '.join(lacking[:3])}" if lacking else "has no file of weights"
        also = f" (there is {halves[0]}, of a download that did not end)" if halves else ""
        raise InputError(f"the base model {model} {what}{also}; {_COPY_AGAIN}")
    for name in files:
        if name.endswith(".safetensors"):
            _check_length(folder / name)


def context_of(model: str) -> int | None:
    """The context of a base model in a folder, in tokens, if its config.json names it."""
    config = Path(model).expanduser() / "config.json"
    fields = _read(config) if config.is_file() else {}
    value = fields.get("max_position_embeddings", fields.get("n_positions"))  # of GPT-2
    return value if isinstance(value, int) else None


def _check_length(file: Path) -> None:
    """Raise InputError if a safetensors file is shorter than its header says."""
    with file.open("rb") as opened:
        start = opened.read(8)  # the length of the header, a little-endian integer
        try:
            header = json.loads(opened.read(struct.unpack("<Q", start)[0]))
            ends = [part["data_offsets"][1] for name, part in header.items() if name[0] != "_"]
        except (ValueError, TypeError, KeyError, IndexError, struct.error, MemoryError) as error:
            raise InputError(f"the base model's file {file} is damaged; {_COPY_AGAIN}") from error
        expected = opened.tell() + max(ends, default=0)
    if (size := file.stat().st_size) < expected:
        raise InputError(
            f"the base model's file {file} has {size:,} of {expected:,} bytes; {_COPY_AGAIN}"
        )


def _read(file: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if the file has none."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}; {_COPY_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} has no JSON object; {_COPY_AGAIN}")
    return content
