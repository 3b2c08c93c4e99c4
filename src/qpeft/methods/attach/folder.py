"""The compact checkpoint of an attached adapter: the generator, initial values, and other trained tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qpeft.core.weights_hash import check_seal
from qpeft.errors import CheckpointError
from qpeft.files import read_json
from qpeft.methods.attach.config import ATTACHED, AttachedConfig

_GENERATOR, _OTHERS = "generator.", "beside."  # prefixes of tensor names


def is_attached(folder: Path) -> bool:
    """Whether the folder contains an attached adapter."""
    try:
        config = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("peft_type") == ATTACHED


def write(folder: Path, config: AttachedConfig, generator: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Write weights, config and model card."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_GENERATOR + name: tensor for name, tensor in generator.items()}
    tensors |= {_OTHERS + name: tensor for name, tensor in others.items()}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def read_config(folder: Path) -> AttachedConfig:
    """The config of an attached adapter. Raises CheckpointError if it is damaged or newer."""
    try:
        content: dict[str, Any] = read_json(folder / CONFIG_NAME)
        config = AttachedConfig(**{k: v for k, v in content.items() if k in AttachedConfig.__dataclass_fields__})
        config.to_stock()
        config.to_generator()
    except CheckpointError:
        raise
    except Exception as error:  # a field of another type can fail anywhere in PEFT
        raise CheckpointError(f"{folder / CONFIG_NAME} is damaged ({error}); restore it") from error
    check_seal(folder, config.weights_sha256)
    return config


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the generator, and all others. Raises CheckpointError if the file cannot be read."""
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():  # reading a pipe would block
        raise CheckpointError(f"{folder} has no file {SAFETENSORS_WEIGHTS_NAME}; restore it")
    try:
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / SAFETENSORS_WEIGHTS_NAME} is damaged or cut off ({error}); use an earlier checkpoint"
        ) from error
    if foreign := sorted(name for name in tensors if not name.startswith((_GENERATOR, _OTHERS))):
        raise CheckpointError(
            f"{folder / SAFETENSORS_WEIGHTS_NAME} contains tensors of no attached adapter: "
            f"{', '.join(foreign[:3])}; it is foreign or damaged"
        )
    generator = {k.removeprefix(_GENERATOR): v for k, v in tensors.items() if k.startswith(_GENERATOR)}
    others = {k.removeprefix(_OTHERS): v for k, v in tensors.items() if k.startswith(_OTHERS)}
    return generator, others
