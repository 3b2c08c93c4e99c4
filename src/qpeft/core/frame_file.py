"""A frame file: frozen directions of a base model's matrices that many adapters share, and refer to by SHA-256.

A safetensors file with `NAME.u` (d_out, R) and `NAME.v` (d_in, R) of each matrix in float16, with orthonormal columns.
Its metadata contain a digest of the base model, the settings of the adapter for which the frames were made, and a
checksum of the file's content, as JSON. An adapter that refers to the file stores only the settings that differ from
these.

A file is read once for each use: its hash is that of the bytes from which the frames are taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from qpeft.core.base_digest import digest, is_quantized, is_same, matrices
from qpeft.core.targets import is_linear, sizes
from qpeft.errors import CheckpointError, ConfigError, setting
from qpeft.files import output_file, parse_json, replace_file

SUFFIX = ".safetensors"
FOUND_ABOVE = 2  # folders above an adapter's that are searched for its frame file

_FORMAT = 1
_KEY = "qpeft"  # one key of metadata: safetensors writes several in any order
_NOT_COMPARED = "not compared"  # instead of a digest: the weights of the base are not in memory
_ROUNDING = 2**-9  # of U^T U for columns in float16; twice the bound
_MAKE = "make one for this base with qpeft.fit_frames(model, batches, save_to=...) or the command qpeft frames"


@dataclass(frozen=True)
class FrameFile:
    """The content of a frame file."""

    path: Path
    sha256: str
    settings: dict[str, Any]  # fields of the PEFT config
    base: str  # digest of the base model, or that its weights could not be compared
    shapes: dict[str, tuple[int, int, int]]  # d_out, d_in, R of each matrix by the name of its module
    tensors: dict[str, Tensor] = field(repr=False)  # float16

    @property
    def modules(self) -> list[str]:
        """Names of the modules that it has frames for, in order."""
        return list(self.shapes)

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
        elif self.base != _NOT_COMPARED and (found := _digest(modules, self.modules)) and _differ(self.base, found):
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
        """
        self.check_has(dict.fromkeys(names, rank))
        return torch.stack([self.tensors[f"{name}.{side}"][:, :rank] for name in names]).float()

    def __str__(self) -> str:
        return f"the frame file {self.path} (SHA-256 {self.sha256})"


_KNOWN: dict[str, Path] = {}  # SHA-256 of files that this process has checked, and where to look for them


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
    base = _digest(dict(model.named_modules()), sorted(frames)) or _NOT_COMPARED
    halves = {key: tensor.detach().half().cpu().contiguous() for key, tensor in sorted(tensors.items())}
    data = _encoded(halves, {"format": _FORMAT, "base": base, "settings": dict(settings)})
    file = _decoded(path, data)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return file


def read_frame_file(path: str | Path) -> FrameFile:
    """Read a frame file into memory, and check it.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is damaged, or not a frame file.
    """
    if not str(path):
        raise ConfigError(f"{setting('frames')} is empty; give the path of a frame file")
    path = Path(path).expanduser().absolute()
    if not isfile(path):  # noqa: PTH113 Path.is_file raises on names that are too long
        raise ConfigError(
            f"{path} is a folder; give a file" if isdir(path) else f"there is no frame file {path}; {_MAKE}"  # noqa: PTH112
        )
    try:
        with safe_open(path, framework="pt"):  # only its header: a large file of another kind would fill the memory
            pass
        return _decoded(path, path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); copy it again") from error


def _damaged(path: Path, reason: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a frame file, or damaged ({reason}); {_MAKE}, or copy it again")


def _encoded(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    text = json.dumps({**header, "checksum": _checksum(tensors, header)}, sort_keys=True)
    return save(tensors, metadata={_KEY: text})


def _decoded(path: Path, data: bytes) -> FrameFile:
    """The frame file at `path` with these bytes. Raises CheckpointError if they are not those of a frame file."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        tensors, header = load(data), _header(data)
        if (version := header["format"]) != _FORMAT:
            raise CheckpointError(
                f"{path} has format {version!r}, this qpeft reads {_FORMAT}; install a newer qpeft, or {_MAKE}"
            )
        shapes = _shapes(tensors)
        if sha256 not in _KNOWN:
            _check_content(tensors, header)
        file = FrameFile(path, sha256, dict(header["settings"]), header["base"], shapes, tensors)
    except CheckpointError:  # it is a ValueError
        raise
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    _KNOWN[sha256] = path
    return file


def _header(data: bytes) -> dict[str, Any]:
    """The qpeft metadata of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = parse_json(data[8:end]).get("__metadata__", {})
    if _KEY not in metadata:
        raise ValueError("it has no settings of frames")
    return dict(parse_json(metadata[_KEY]))


def _check_content(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Raise ValueError unless these are frames of a base model, as they were written."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float16:
            raise ValueError(f"{name} is {tensor.dtype}, not torch.float16")
        gram = tensor.float().mT @ tensor.float()  # (R, R)
        if not gram.isfinite().all():
            raise ValueError(f"{name} contains NaN or Inf")
        gram.diagonal().sub_(1)
        if (error := gram.abs().max().item()) > _ROUNDING:
            raise ValueError(
                f"the columns of {name} are not orthonormal: their products differ from the identity by {error:.2g}"
            )
    if not isinstance(header["base"], str):
        raise ValueError(f"it belongs to no base model: base is {header['base']!r}")
    if header.pop("checksum") != _checksum(tensors, header):
        raise ValueError("its content does not have its checksum: it was changed after it was written")


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of the header, and of names, shapes and values of the tensors."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _shapes(found: Mapping[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    """d_out, d_in and R by module, from the shapes of the tensors. Raises ValueError if they are not those of pairs."""
    if not found:
        raise ValueError("it has no tensors")
    shapes = {}
    for name in sorted({key.rpartition(".")[0] for key in found}):
        (d_out, n_left), (d_in, n_right) = found[f"{name}.u"].shape, found[f"{name}.v"].shape
        if n_left != n_right or not n_left:
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
    """The frame file of the adapter in `folder`: where this process read it, in the folder, or in one of two above it.

    Raises CheckpointError, with the name and hash of the file, if it is missing or another one.
    """
    if not (isinstance(name, str) and isinstance(sha256, str) and Path(name).name == name):
        raise CheckpointError(f"{folder} refers to the frame file {name!r} with hash {sha256!r}; restore its config")
    here = folder.absolute()
    paths = [*filter(None, [_KNOWN.get(sha256)]), *(place / name for place in (here, *here.parents[:FOUND_ABOVE]))]
    others = "it is missing"
    for path in filter(isfile, paths):
        if (file := read_frame_file(path)).sha256 == sha256:
            return file
        others = f"{path} has SHA-256 {file.sha256}"
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


def _digest(modules: Mapping[str, nn.Module], names: Iterable[str]) -> str | None:
    return digest({key: w for name in names for key, w in matrices(modules[name], name).items()})


def _differ(base: str, found: str) -> bool:
    return not is_same(base, found) and not is_quantized(base, found)


def _fits(module: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the module is a linear map with outputs and inputs of these widths."""
    layer = _base_layer(module)
    return is_linear(layer) and sizes(layer) == (shape[1], shape[0])


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
