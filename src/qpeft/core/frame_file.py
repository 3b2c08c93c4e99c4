"""A frame file: frozen directions of a base model's matrices that many adapters share, and refer to by SHA-256.

A safetensors file with `NAME.u` (d_out, R) and `NAME.v` (d_in, R) of each matrix in float16. Its metadata contain a
fingerprint of the base model and the settings of the adapter for which the frames were made, as JSON. An adapter that
refers to the file stores only the settings that differ from these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import file_hash, output_file, parse_json, replace_file

SUFFIX = ".safetensors"
FOUND_ABOVE = 2  # folders above an adapter's that are searched for its frame file

_FORMAT = 1
_KEY = "qpeft"  # one key of metadata: safetensors writes several in any order
_SAMPLE = 4096  # entries of each matrix in the fingerprint of the base model
_MAKE = "make one for this base with qpeft.fit_frames(model, batches, save_to=...)"


@dataclass(frozen=True)
class FrameFile:
    """The header of a frame file."""

    path: Path
    sha256: str
    settings: dict[str, Any]  # fields of the PEFT config
    base: str | None  # `fingerprint` of the base model; None: its weights could not be compared
    modules: list[str]
    stamp: tuple[int, ...]

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was read."""
        return self.path.is_file() and _stamp(self.path) == self.stamp

    def check_base(self, model: nn.Module) -> None:
        """Raise CheckpointError unless `model` is the base model of the frames.

        Weights are compared as far as they can be: not on the meta device, and not those of a quantized base.
        """
        modules = dict(model.named_modules())
        missing = [name for name in self.modules if name not in modules]
        found = None if missing or self.base is None else fingerprint(modules, self.modules)
        if missing or found not in (None, self.base):
            what = f"it has no module {missing[0]}" if missing else "its weights differ"
            raise CheckpointError(
                f"{self} contains the frames of another base model than this one: {what}; load the base model of the "
                f"frames, or {_MAKE}"
            )

    def frame(self, names: Iterable[str], side: str, rank: int) -> Tensor:
        """The first `rank` directions of these matrices, (M, width, rank) float32; side "u" or "v"."""
        with safe_open(self.path, framework="pt") as file:
            found = [self._tensor(file, name, side, rank) for name in names]
        return torch.stack(found)

    def _tensor(self, file: Any, name: str, side: str, rank: int) -> Tensor:
        if name not in self.modules:
            raise ConfigError(
                f"{self} has no frame for {name}; adapt only modules that it has (target_modules="
                f"{self.settings.get('target_modules')!r}), or {_MAKE}"
            )
        frame = file.get_tensor(f"{name}.{side}").float()
        if frame.shape[1] < rank:
            raise ConfigError(
                f"{self} has {frame.shape[1]} directions for {name}, {rank} are needed; use a smaller rank, or {_MAKE}"
            )
        return frame[:, :rank]

    def __str__(self) -> str:
        return f"the frame file {self.path} (SHA-256 {self.sha256})"


_KNOWN: dict[str, FrameFile] = {}  # files that this process has read, by their SHA-256


def new_path(save_to: str | Path) -> Path:
    """The path of a new frame file. Raises ConfigError if it cannot be written, or exists: adapters may refer to it."""
    path = Path(save_to).expanduser()
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    output_file(path)
    if path.exists():
        raise ConfigError(
            f"{path} exists, and adapters may refer to it; use its frames with frames={str(path)!r}, or give another "
            "name"
        )
    return path


def write_frame_file(
    path: Path, frames: Mapping[str, tuple[Tensor, Tensor]], settings: Mapping[str, Any], model: nn.Module
) -> FrameFile:
    """Write `path` atomically.

    Args:
        frames: (d_out, R) and (d_in, R) of each matrix, by the name of its module in `model`.
        settings: Fields of the PEFT config, ready for JSON.
        model: The base model.
    """
    tensors = {f"{name}.{side}": t for name, pair in frames.items() for side, t in zip("uv", pair, strict=True)}
    base = fingerprint(dict(model.named_modules()), sorted(frames))
    header = json.dumps({"format": _FORMAT, "base": base, "settings": dict(settings)}, sort_keys=True)
    with replace_file(path) as temporary:
        halves = {key: tensor.detach().half().cpu().contiguous() for key, tensor in sorted(tensors.items())}
        save_file(halves, temporary, metadata={_KEY: header})
    return read_frame_file(path)


def read_frame_file(path: str | Path) -> FrameFile:
    """The header and the hash of a frame file.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is damaged, or not a frame file.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"there is no frame file {path}; {_MAKE}")
    stamp = _stamp(path)
    for known in _KNOWN.values():
        if (known.path, known.stamp) == (path, stamp):
            return known
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[_KEY])
            names = list(file.keys())
        version, settings, base = header["format"], dict(header["settings"]), header["base"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a frame file, or damaged ({error}); {_MAKE}, or copy it again") from error
    if version != _FORMAT:
        raise CheckpointError(f"{path} has format {version}, this qpeft reads {_FORMAT}; install a newer qpeft")
    modules = sorted({name.rpartition(".")[0] for name in names})
    found = FrameFile(path, file_hash(path), settings, base, modules, stamp)
    _KNOWN[found.sha256] = found
    return found


def find_frame_file(name: Any, sha256: Any, folder: Path) -> FrameFile:
    """The frame file of the adapter in `folder`: known to this process, or in the folder, or in one of two above it.

    Raises CheckpointError, with the name and hash of the file, if it is missing or another one.
    """
    if not (isinstance(name, str) and isinstance(sha256, str) and Path(name).name == name):
        raise CheckpointError(f"{folder} refers to the frame file {name!r} with hash {sha256!r}; restore its config")
    known = _KNOWN.get(sha256)
    if known is not None and known.is_unchanged():
        return known
    here = folder.absolute()
    paths = [place / name for place in (here, *here.parents[:FOUND_ABOVE])]
    found = [read_frame_file(path) for path in paths if path.is_file()]
    for file in found:
        if file.sha256 == sha256:
            return file
    others = f"{found[0].path} is another file, with SHA-256 {found[0].sha256}" if found else "it is missing"
    raise CheckpointError(
        f"{folder} was trained in the frames of {name} with SHA-256 {sha256}: {others}. Put that file next to the "
        "adapter's folder, or name it: qpeft.load(base, folder, frames=PATH), qpeft.AdapterPool(base, folder, "
        "frames=PATH)"
    )


def complete(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json, with the settings that the frame file contains if it refers to one."""
    if content.get("frames_sha256") is None:
        return content
    file = find_frame_file(content.get("frames"), content["frames_sha256"], folder)
    return {**file.settings, "generated": None, **content, "frames": str(file.path)}


def inherited(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of the frame file to which adapter_config.json refers; empty if it refers to none."""
    if content.get("frames_sha256") is None:
        return {}
    return find_frame_file(content.get("frames"), content["frames_sha256"], folder).settings


def fingerprint(modules: Mapping[str, nn.Module], names: Iterable[str]) -> str | None:
    """SHA-256 over names, shapes and the signs of some weights of these modules; None if weights have no signs.

    Signs are equal in every floating-point precision of a base model.
    """
    digest = hashlib.sha256()
    for name in names:
        module: Any = modules[name]
        weight = (module.get_base_layer() if hasattr(module, "get_base_layer") else module).weight
        if weight.is_meta or not weight.is_floating_point():
            return None
        flat = weight.detach().flatten()
        signs = torch.signbit(flat[:: max(1, flat.numel() // _SAMPLE)]).cpu().numpy()
        digest.update(json.dumps([name, list(weight.shape)]).encode() + np.packbits(signs).tobytes())
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
