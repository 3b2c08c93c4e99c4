"""The files of a base model, checked before torch is imported: what is missing or half copied."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from qpeft.errors import InputError, needs
from qpeft.files import read_json
from qpeft_lab.user_files import explain_missing, looks_like_path

SOURCE = "source.json"  # of a base that `qpeft base` built
TEMPLATE = "chat_template.jinja"  # as transformers names it
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_COPY_AGAIN = "copy or download it again"
NO_CHAT_TEMPLATE = (
    "the data has messages, but the tokenizer has no chat template; set chat_template to"
    " chatml, use a chat model, or give the columns prompt and completion"
)
# of a GGUF file: the bytes of a number by the code of its type, and two types of other lengths
_NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT = 8
_ARRAY = 9
_SCALING = b".rope.scaling.type"  # after the name of an architecture


def check_base_files(model: str) -> None:
    """Raise InputError if `model` is a path without a model, or a folder whose weights are
    incomplete. A hub id passes.
    """
    folder = Path(model).expanduser()
    if looks_like_path(model) and not folder.exists():
        raise InputError(f"no model folder {model}: {explain_missing(model)}")
    if folder.is_file() and folder.suffix != ".gguf":
        raise InputError(f"{model} is a file; give the folder of a base model, or a GGUF file")
    if folder.is_file():
        _check_gguf(folder)
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


def source_of(folder: Path) -> dict[str, str]:
    """Where the base in a folder is from: `base`, `about`, `hub_id`, ...; empty if `qpeft base` did
    not build it.
    """
    card = folder / SOURCE
    return read_json(card) if card.is_file() else {}


def own_template(adapter: Path | None) -> str | None:
    """The path of the chat template next to an adapter, with which it was trained; None without."""
    template = None if adapter is None else adapter / TEMPLATE
    return str(template) if template is not None and template.is_file() else None


def lacks_chat_template(model: str) -> bool:
    """Whether the base is a folder with a tokenizer that has no chat template."""
    folder = Path(model).expanduser()
    config = folder / "tokenizer_config.json"
    return (
        config.is_file()
        and not (folder / TEMPLATE).is_file()
        and not (folder / "additional_chat_templates").is_dir()
        and _read(config).get("chat_template") is None
    )


def _check_length(file: Path) -> None:
    """Raise InputError if a safetensors file is shorter than its header says."""
    with file.open("rb") as opened:
        start = opened.read(8)  # the length of the header, a little-endian integer
        try:
            header = json.loads(opened.read(struct.unpack("<Q", start)[0]))
            ends = [part["data_offsets"][1] for name, part in header.items() if name[0] != "_"]
        except (ValueError, TypeError, KeyError, IndexError, struct.error, MemoryError) as error:
            raise _damaged(file) from error
        expected = opened.tell() + max(ends, default=0)
    _refuse_shorter(file, expected)


def _check_gguf(file: Path) -> None:
    """Raise InputError if a GGUF file is shorter than its header says, or scales its rotary
    embeddings, which transformers does not read.

    `gguf.GGUFReader` reads the whole vocabulary for that, which takes seconds.
    """
    with needs(f"the GGUF file {file}", "gguf"):
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    with file.open("rb") as opened:
        try:
            if opened.read(4) != b"GGUF" or _number(opened, 4) < 2:
                raise ValueError("no GGUF file of version 2 or 3")
            n_tensors = _number(opened, 8)
            n_fields = _number(opened, 8)
            alignment = 32
            scaling = b"none"
            for _ in range(n_fields):
                name = opened.read(_number(opened, 8))
                kind = _number(opened, 4)
                if name == b"general.alignment":
                    alignment = _number(opened, 4)
                elif name.endswith(_SCALING) and kind == _TEXT:
                    scaling = opened.read(_number(opened, 8))
                else:
                    scaling = b"linear" if name.endswith(b".rope.scale_linear") else scaling
                    _skip_value(opened, kind)
            expected = 0
            for _ in range(n_tensors):
                name = opened.read(_number(opened, 8))
                scaling = b"frequencies" if name.startswith(b"rope_f") else scaling
                n_values = 1
                for _ in range(_number(opened, 4)):
                    n_values *= _number(opened, 8)
                block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(_number(opened, 4))]
                offset = _number(opened, 8)
                expected = max(expected, offset + n_values // block * n_bytes)
        except EOFError:
            raise InputError(f"the base model's file {file} ends early; {_COPY_AGAIN}") from None
        except (ValueError, KeyError, OverflowError, MemoryError, RecursionError, OSError) as error:
            raise _damaged(file) from error
        header = -(-opened.tell() // alignment) * alignment if alignment else opened.tell()
    _refuse_shorter(file, header + expected)
    if scaling != b"none":
        raise InputError(
            f"the base model's file {file} scales its rotary embeddings"
            f" ({scaling.decode(errors='replace')}), which transformers does not read from GGUF, so"
            " its logits would differ; give the folder or the hub id of the same model"
        )


def _skip_value(opened: BinaryIO, kind: int) -> None:
    """Move to the end of a value in the header of a GGUF file; `kind` is the code of its type."""
    if kind == _TEXT:
        opened.seek(_number(opened, 8), 1)
    elif kind == _ARRAY:
        kind = _number(opened, 4)
        length = _number(opened, 8)
        if kind in _NUMBERS:
            opened.seek(length * _NUMBERS[kind], 1)
            return
        for _ in range(length):
            _skip_value(opened, kind)
    else:
        opened.seek(_NUMBERS[kind], 1)


def _number(opened: BinaryIO, n_bytes: int) -> int:
    """A little-endian integer. Raises EOFError at the end of the file."""
    read = opened.read(n_bytes)
    if len(read) < n_bytes:
        raise EOFError
    return int.from_bytes(read, "little")


def _refuse_shorter(file: Path, expected: int) -> None:
    if (size := file.stat().st_size) < expected:
        raise InputError(
            f"the base model's file {file} has {size:,} of {expected:,} bytes; {_COPY_AGAIN}"
        )


def _damaged(file: Path) -> InputError:
    return InputError(f"the base model's file {file} is damaged; {_COPY_AGAIN}")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if the file has none."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}; {_COPY_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} has no JSON object; {_COPY_AGAIN}")
    return content
