"""What is done to a copy of good files: to bytes, to what they say, to the folder."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bad_files_made import METHODS, OTHERS
from bad_files_tensors import spoil as spoil_tensors
from bad_files_text import RUNS_CODE, spoil_json, spoil_rows, spoil_yaml


@dataclass(frozen=True)
class Mutation:
    """`kind` of change, to which `file`, in which way; `neutral` if the content says what it said before."""

    kind: str
    file: str
    how: str
    neutral: bool = False


class _Payload:
    """Unpickled, it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return (os.system, (f"touch {self.marker}",))


def mutate(copy: Path, good: Path, marker: Path, draw: random.Random) -> Mutation:
    """Spoil one file of `copy`, which is a file or a folder equal to `good`; code in it would write `marker`."""
    file = draw.choice(_targets(copy))
    name = file.name if file == copy else file.relative_to(copy).as_posix()
    kinds = _kinds(file)
    kind = draw.choice(kinds)
    if kind == "tree":
        how, neutral = _tree(file, copy, good, marker, draw)
    elif kind == "bytes":
        how, neutral = _bytes(file, draw)
    else:
        spoil = {"tensors": spoil_tensors, "json": spoil_json, "yaml": spoil_yaml, "rows": spoil_rows}[kind]
        how, neutral = spoil(file, draw)
    if file.is_file() and kind == "yaml":
        file.write_bytes(file.read_bytes().replace(RUNS_CODE.encode(), str(marker).encode()))
    return Mutation(kind, name, how, neutral)


_READ = ("adapter_config.json", "adapter_model.safetensors", "task.json", "config.json", "metrics.jsonl", "result.json")


def _targets(copy: Path) -> list[Path]:
    """The files that a load reads."""
    if copy.is_file():
        return [copy]
    if (copy / "checkpoints").is_dir():  # a run
        checkpoints = [p for p in (copy / "checkpoints").rglob("*") if p.is_file()]
        return [copy / name for name in _READ if (copy / name).is_file()] * 3 + checkpoints
    return [p for p in sorted(copy.rglob("*")) if p.name in _READ or p.suffix == ".png"]


def _kinds(file: Path) -> list[str]:
    special = {".safetensors": "tensors", ".json": "json", ".yaml": "yaml", ".jsonl": "rows", ".csv": "rows"}
    special |= {".tsv": "rows", ".txt": "rows"}
    kinds = ["bytes", "bytes", "tree"]
    if file.suffix in special:
        kinds += [special[file.suffix]] * 4
    return kinds


# -- bytes


def _bytes(file: Path, draw: random.Random) -> tuple[str, bool]:
    change = draw.choice(_BYTES)
    file.write_bytes(change(file.read_bytes(), draw))
    return change.__name__.strip("_"), False


def _flip_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(64, len(content)))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def _noise(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    new = draw.randbytes(draw.choice([1, 2, 8, 64]))
    return content[:place] + new + content[place + len(new) :]


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice([draw.randrange(len(content)), len(content) - 1, 8, 1])]


def _extend(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice([b"\0", b"\0" * 4096, draw.randbytes(7), content])


def _empty(content: bytes, draw: random.Random) -> bytes:
    return b""


def _zeros(content: bytes, draw: random.Random) -> bytes:
    """What a file system leaves of a file that was not flushed."""
    begin = draw.choice([0, draw.randrange(len(content))])
    return content[:begin] + b"\0" * (len(content) - begin)


def _cut_out(content: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(content))
    return content[:begin] + content[begin + draw.choice([1, 4, 100]) :]


_BYTES = [_flip_bit, _flip_bit, _flip_bit, _noise, _truncate, _extend, _empty, _zeros, _cut_out]

# -- the folder


def _tree(file: Path, copy: Path, good: Path, marker: Path, draw: random.Random) -> tuple[str, bool]:
    changes = ["remove", "rename", "folder", "link", "dangling", "loop", "pipe", "pickle"]
    is_adapter = good.name.startswith(("adapter-", "exported-"))
    how = draw.choice([*changes, *(["bin", "swap", "swap", "swap", "swap"] if is_adapter else [])])
    if how == "swap":
        return _swap(file, good, draw), False
    aside = copy.parent / "aside"
    shutil.move(file, aside)
    if how == "rename":
        shutil.move(aside, file.with_name(draw.choice([f"{file.name}.bak", file.name.upper(), f".{file.name}"])))
    elif how == "folder":
        file.mkdir()
    elif how == "link":
        file.symlink_to(aside)
    elif how == "dangling":
        file.symlink_to(copy / "nowhere")
    elif how == "loop":
        file.symlink_to(file)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(_Payload(marker), protocol=draw.choice([0, 2, 4])))
    elif how == "bin":
        (file if file.suffix == ".json" else file.with_suffix(".bin")).write_bytes(pickle.dumps(_Payload(marker)))
    return how, how == "link"


def _swap(file: Path, good: Path, draw: random.Random) -> str:
    form, method = good.name.split("-")[:2]
    names = [f"{form}-{method}-{other}" for other in OTHERS]
    names += [f"adapter-{other}" for other in METHODS if other != method]
    other = draw.choice(names)
    shutil.copyfile(good.parent / other / file.name, file)
    return f"swap {other}"
