"""A frame file: frozen directions of a base model's matrices that many adapters share, and refer to by SHA-256.

A safetensors file with `NAME.u` (d_out, R) and `NAME.v` (d_in, R) of each matrix in float16. Its metadata contain a
fingerprint of the base model and the settings of the adapter for which the frames were made, as JSON. An adapter that
refers to the file stores only the settings that differ from these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qpeft.errors import CheckpointError, ConfigError, setting
from qpeft.files import file_hash, output_file, parse_json, replace_file

SUFFIX = ".safetensors"
FOUND_ABOVE = 2  # folders above an adapter's that are searched for its frame file

_FORMAT = 1
_KEY = "qpeft"  # one key of metadata: safetensors writes several in any order
_SAMPLE = 4096  # entries of each matrix in the fingerprint of the base model
_MAKE = "make one for this base with qpeft.fit_frames(model, batches, save_to=...) or the command qpeft frames"


@dataclass(frozen=True)
class FrameFile:
    """The header of a frame file."""

    path: Path
    sha256: str
    settings: dict[str, Any]  # fields of the PEFT config
    base: str | None  # `fingerprint` of the base model; None: its weights could not be compared
    shapes: dict[str, tuple[int, int, int]]  # d_out, d_in, R of each matrix by the name of its module
    stamp: tuple[int, ...]

    @property
    def modules(self) -> list[str]:
        """Names of the modules that it has frames for, in order."""
        return list(self.shapes)

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was read."""
        return self.path.is_file() and _stamp(self.path) == self.stamp

    def check_base(self, model: nn.Module) -> None:
        """Raise CheckpointError unless `model` is the base model of the frames.

        Weights are compared as far as they can be: on the meta device only their shapes, and not those of a quantized
        base.
        """
        modules = dict(model.named_modules())
        missing = [name for name in self.modules if name not in modules]
        if missing:
            problem = f"this one has no module {missing[0]}"
        elif others := [name for name, shape in self.shapes.items() if not _fits(modules[name], shape)]:
            problem = f"{others[0]} has another shape"
        elif self.base is not None and fingerprint(modules, self.modules) not in (None, self.base):
            problem = "the weights differ"
        else:
            return
        raise CheckpointError(
            f"{self} contains the frames of another base model: {problem}; load the base model of the "
            f"frames, or {_MAKE}"
        )

    def check_has(self, needed: Mapping[str, int]) -> None:
        """Raise ConfigError unless it has so many directions for each of these modules."""
        for name, n_directions in needed.items():
            if name not in self.shapes:
                raise ConfigError(
                    f"{self} has no frame for {name}; adapt only modules that it has ({setting('target_modules')} "
                    f"{self.settings.get('target_modules')!r}), or {_MAKE}"
                )
            if (found := self.shapes[name][2]) < n_directions:
                raise ConfigError(
                    f"{self} has {found} directions for {name}, {n_directions} are needed; use a smaller "
                    f"{setting('frame_rank')} or {setting('r')}, or {_MAKE}"
                )

    def frame(self, names: Sequence[str], side: str, rank: int) -> Tensor:
        """The first `rank` directions of these matrices, (M, width, rank) float32; side "u" or "v".

        Raises:
            ConfigError: it has no frame for a matrix, or fewer directions.
            CheckpointError: a frame is not finite.
        """
        self.check_has(dict.fromkeys(names, rank))
        with safe_open(self.path, framework="pt") as file:
            frames = torch.stack([file.get_tensor(f"{name}.{side}")[:, :rank] for name in names]).float()
        if not torch.isfinite(frames).all():
            raise CheckpointError(f"{self} contains NaN or Inf; copy it again, or {_MAKE}")
        return frames

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
            f"{path} exists, and adapters may refer to it; to use its frames name it in {setting('frames')}, or give "
            "another name"
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
    if not str(path):
        raise ConfigError(f"{setting('frames')} is empty; give the path of a frame file")
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(
            f"{path} is a folder; give a file" if path.is_dir() else f"there is no frame file {path}; {_MAKE}"
        )
    stamp = _stamp(path)
    for known in _KNOWN.values():
        if (known.path, known.stamp) == (path, stamp):
            return known
    try:
        with safe_open(path, framework="pt") as file:
            if _KEY not in (metadata := file.metadata() or {}):
                raise ValueError("it has no settings of frames")
            header = parse_json(metadata[_KEY])
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 it is no dict
        version, settings, base = header["format"], dict(header["settings"]), header["base"]
        shapes = _shapes(found) if version == _FORMAT else {}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a frame file, or damaged ({error}); {_MAKE}, or copy it again") from error
    if version != _FORMAT:
        raise CheckpointError(f"{path} has format {version!r}, this qpeft reads {_FORMAT}; install a newer qpeft")
    frames = FrameFile(path, file_hash(path), settings, base, shapes, stamp)
    _KNOWN[frames.sha256] = frames
    return frames


def _shapes(found: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int, int]]:
    """d_out, d_in and R by module, from the shapes of the tensors. Raises ValueError if they are not those of pairs."""
    if not found:
        raise ValueError("it has no tensors")
    shapes = {}
    for name in sorted({key.rpartition(".")[0] for key in found}):
        (d_out, n_left), (d_in, n_right) = found[f"{name}.u"], found[f"{name}.v"]
        if n_left != n_right:
            raise ValueError(f"{name} has {n_left} and {n_right} directions")
        shapes[name] = d_out, d_in, n_left
    return shapes


def check_given(frames: str | Path, content: Mapping[str, Any], folder: Path) -> None:
    """Read the frame file that a user gives for the adapter in `folder`, whose adapter_config.json has this content.

    Raises:
        ConfigError: there is no such file, or the adapter refers to none.
        CheckpointError: it is another one than that in whose frames the adapter was trained.
    """
    file, wanted = read_frame_file(frames), content.get("frames_sha256")
    if wanted is None:
        raise ConfigError(f"{folder} refers to no frame file; leave out {setting('frames')}")
    if file.sha256 != wanted:
        raise CheckpointError(
            f"{file} is not the one in whose frames {folder} was trained; give, as {setting('frames')}, "
            f"{content.get('frames')} with SHA-256 {wanted}"
        )


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
    others = f"{found[0].path} has SHA-256 {found[0].sha256}" if found else "it is missing"
    raise CheckpointError(
        f"{folder} was trained in the frames of {name} with SHA-256 {sha256}: {others}. Restore "
        "this file next to the adapter's folder, or name it: frames=PATH of qpeft.load and qpeft.AdapterPool, or "
        "--frames PATH of qpeft evaluate, generate and export"
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
        weight = _base_layer(modules[name]).weight
        if weight.is_meta or not weight.is_floating_point():
            return None
        flat = weight.detach().flatten()
        step = flat.numel() // _SAMPLE | 1  # odd: an even one can stay in one column
        signs = torch.signbit(flat[::step]).cpu().numpy()
        digest.update(json.dumps([name, list(weight.shape)]).encode() + np.packbits(signs).tobytes())
    return digest.hexdigest()


def _fits(module: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the module's weight has these sizes, in either order; True for a quantized weight."""
    weight = getattr(_base_layer(module), "weight", None)
    return weight is not None and (not weight.is_floating_point() or {*weight.shape} == {*shape[:2]})


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
