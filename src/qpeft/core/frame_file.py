"""A frame file: frozen directions of a base model's matrices that many adapters share, and refer to
by SHA-256.

A safetensors file with `NAME.u` (d_out, R) and `NAME.v` (d_in, R) of each matrix in float16, with
orthonormal columns. Its metadata contain a hash of these, a digest of the base model, and the
settings of the adapter for which the frames were made, as JSON. An adapter that refers to the file
stores only the settings that differ from these.

A load reads the file once: its settings, its hash and the frames are those of the same bytes. So a
changed file is refused for every adapter that refers to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import isfile  # which, unlike Path.is_file, accepts names that are too long
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from qpeft.core.base_digest import digest, is_quantized, is_same, matrices
from qpeft.core.targets import is_linear, sizes
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import replace_file

SUFFIX = ".safetensors"
FOUND_ABOVE = 2  # folders above an adapter's that are searched for its frame file

_FORMAT = 1
_KEY = "qpeft"  # one key of metadata: safetensors writes several in any order
_ROUNDING = 2**-9  # of U^T U for columns in float16; twice the bound
_MAKE = (
    "make one for this base with qpeft.fit_frames(model, batches, save_to=...) or the command qpeft"
    " frames"
)
_GIVE = (
    "restore this file next to the adapter's folder, or name it: frames=PATH of qpeft.load and"
    " qpeft.AdapterPool, or --frames PATH of qpeft evaluate, generate and export"
)


class FrameShape(NamedTuple):
    """Of the frames of one matrix (d_out, d_in)."""

    d_out: int
    d_in: int
    n_directions: int  # R


@dataclass(frozen=True)
class FrameFile:
    """The content of a frame file."""

    path: Path
    sha256: str
    settings: dict[str, Any]  # fields of the PEFT config
    base: str  # digest of the base model
    shapes: dict[str, FrameShape]  # by the name of the matrix's module
    tensors: dict[str, Tensor] = field(repr=False)  # float16

    def check_base(self, model: nn.Module) -> None:
        """Raise CheckpointError unless `model` is the base model of the frames.

        Weights are compared as far as they can be: on the meta device only their shapes, and not
        those of a quantized base.
        """
        modules: dict[str, Any] = {
            name: getattr(module, "base_layer", module)
            for name, module in model.named_modules()
            if name in self.shapes
        }
        present = {name: sizes(module) for name, module in modules.items() if is_linear(module)}
        expected = {name: (shape.d_in, shape.d_out) for name, shape in self.shapes.items()}
        weights = _digest(modules)  # None if they cannot be compared
        differ = weights and not is_same(self.base, weights)
        if present != expected or (differ and not is_quantized(self.base, str(weights))):
            raise CheckpointError(
                f"{self} contains the frames of another base model: weights differ, are missing, or"
                f" have other shapes; load the frames' base model, or {_MAKE}"
            )

    def frame(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """The first `rank` directions of a matrix, (d_out, rank) and (d_in, rank) float32.

        Raises ConfigError if it has no frame for the matrix, or fewer directions.
        """
        shape = self.shapes.get(name)
        n_directions = 0 if shape is None else shape.n_directions
        if n_directions < rank:
            raise ConfigError(
                f"{self} has {n_directions} directions for {name}, {rank} are needed; adapt only"
                f" modules that it has (target_modules {self.settings.get('target_modules')!r}),"
                f" use a smaller frame_rank or r, or {_MAKE}"
            )
        u = self.tensors[f"{name}.u"][:, :rank]
        v = self.tensors[f"{name}.v"][:, :rank]
        return u.float(), v.float()

    def __str__(self) -> str:
        return f"the frame file {self.path} (SHA-256 {self.sha256})"


def new_path(save_to: str | Path) -> Path:
    """The path of a new frame file. Raises ConfigError if it exists: adapters may refer to it."""
    path = Path(save_to).expanduser()
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    if path.exists():
        refuse_to_replace(path)
    return path


def refuse_to_replace(path: Path) -> NoReturn:
    """Raise ConfigError for a frame file that exists."""
    raise ConfigError(
        f"{path} exists, and adapters may refer to it; to use it, give it as frames, or give"
        " another name"
    )


def write_frame_file(
    path: Path,
    frames: Mapping[str, tuple[Tensor, Tensor]],
    settings: Mapping[str, Any],
    model: nn.Module,
) -> FrameFile:
    """Write the new file `path` atomically.

    Args:
        frames: (d_out, R) and (d_in, R) of each matrix, by the name of its module in `model`.
        settings: Fields of the PEFT config, ready for JSON.
        model: The base model.

    Raises ConfigError if the file exists, or if a weight of the base has no digest, so that nothing
    could tell it from another base.
    """
    tensors = {}
    for name, (u, v) in frames.items():
        tensors[f"{name}.u"] = u
        tensors[f"{name}.v"] = v
    base = _digest({name: model.get_submodule(name) for name in frames})
    if base is None:
        raise ConfigError(
            "a frame file is for one base model, and weights of this one cannot be compared: they"
            " are sharded, or in a packed format; load the base without these, or save the adapter"
            " with its frames inside (no save_to)"
        )
    halves = {
        key: tensor.detach().half().cpu().contiguous() for key, tensor in sorted(tensors.items())
    }
    content = _content_hash(halves)
    header = {"format": _FORMAT, "base": base, "content": content, "settings": dict(settings)}
    data = save(halves, metadata={_KEY: json.dumps(header, sort_keys=True)})
    file = _decoded(path, data)
    try:
        with replace_file(path, is_new=True) as temporary:
            temporary.write_bytes(data)
    except FileExistsError:  # another process has written it since the work began
        refuse_to_replace(path)
    return file


def read_frame_file(path: str | Path, sha256: str | None = None) -> FrameFile:
    """Read a frame file into memory, and check it. Raises ConfigError if there is none.

    Raises CheckpointError if it is damaged, not a frame file, or another one than that with
    `sha256`.
    """
    path = Path(path).expanduser().absolute()
    if not isfile(path):  # noqa: PTH113
        raise ConfigError(f"there is no frame file {path}; {_MAKE}")
    file = _decoded(path, path.read_bytes())
    if sha256 not in (None, file.sha256):
        raise CheckpointError(
            f"{file} is not the one that the adapter was trained in, with SHA-256 {sha256}; {_GIVE}"
        )
    return file


def _decoded(path: Path, data: bytes) -> FrameFile:
    """The frame file at `path` with these bytes. Raises CheckpointError if they are not those of a
    frame file.
    """
    try:
        tensors = load(data)
        # safetensors: the length of the header in 8 bytes, and the header as JSON
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8:end])["__metadata__"][_KEY])
        names = sorted({key.rpartition(".")[0] for key in tensors})
        shapes = {name: _shape(tensors, name) for name in names}
        if header["format"] != _FORMAT or not shapes or not isinstance(header["base"], str):
            raise ValueError(
                f"format {header['format']!r}, {len(shapes)} matrices, base {header['base']!r}"
            )
        content = header.get("content")  # since qpeft 0.3
        if content is not None and content != _content_hash(tensors):
            raise ValueError("its frames are not those that were written")
        sha256 = hashlib.sha256(data).hexdigest()
        file = FrameFile(path, sha256, dict(header["settings"]), header["base"], shapes, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a frame file, or damaged ({error}); {_MAKE}, or copy it again"
        ) from error
    return file


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values, in the order of the names: frames that were exchanged are
    orthonormal, too.
    """
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(name.encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def _shape(tensors: Mapping[str, Tensor], name: str) -> FrameShape:
    """The shape of a module's frames. Raises ValueError unless these are pairs of orthonormal
    columns.
    """
    u = tensors[f"{name}.u"]
    v = tensors[f"{name}.v"]
    d_out, rank = u.shape
    d_in, _ = v.shape
    grams = [frame.float().mT @ frame.float() for frame in (u, v)]  # (R, R) each
    # RuntimeError if v has another rank
    error = torch.stack(grams) - torch.eye(rank, device=u.device)
    if not rank or {u.dtype, v.dtype} != {torch.float16} or not error.abs().max() <= _ROUNDING:
        raise ValueError(f"{name} has no orthonormal columns in float16")
    return FrameShape(d_out, d_in, rank)


class WithFrames(NamedTuple):
    """The content of an adapter_config.json with the settings in its frame file, if it has one."""

    content: dict[str, Any]
    file: FrameFile | None


def with_frame_settings(
    content: dict[str, Any], folder: Path, given: str | Path | None = None
) -> WithFrames:
    """The content of adapter_config.json, with the settings in the frame file if the adapter refers
    to one, and the file.

    The file is `given`, or it is searched for in the adapter's `folder`, and in two above.

    Raises CheckpointError, with its name and hash, if it is missing or another one; ConfigError if
    `given` is missing, or the adapter refers to none.
    """
    name = content.get("frames")
    sha256 = content.get("frames_sha256")
    if sha256 is None:
        if given is not None:
            raise ConfigError(
                f"the adapter at {folder} refers to no frame file, so {given} has no meaning for it;"
                " leave frames out"
            )
        return WithFrames(content, None)
    searched = [folder.absolute(), *folder.absolute().parents][: FOUND_ABOVE + 1]
    near = [place / Path(str(name)).name for place in searched]
    path = given if given is not None else next(filter(isfile, near), None)
    if path is None:
        raise CheckpointError(
            f"{folder} was trained in the frames of {name} with SHA-256 {sha256}, which is missing;"
            f" {_GIVE}"
        )
    file = read_frame_file(path, sha256)
    content = {**file.settings, "generated": None, **content, "frames": str(file.path)}
    return WithFrames(content, file)


def _digest(modules: Mapping[str, nn.Module]) -> str | None:
    return digest(
        {key: w for name, module in modules.items() for key, w in matrices(module, name).items()}
    )
