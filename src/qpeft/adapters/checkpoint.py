"""Save and load adapter folders; a damaged or foreign one is refused with the reason and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open
from torch import nn

from qpeft.adapters.attach import load_attached
from qpeft.adapters.attached_config import ATTACHED
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import replace_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def save(model: PeftModel, directory: str | Path) -> None:
    """`model.save_pretrained`, whole or not at all; an earlier adapter in the folder is replaced.

    Raises:
        ConfigError: the folder holds other files, which would be lost.
    """
    target = Path(directory).resolve()
    names = [CONFIG, WEIGHTS, "README.md", *model.peft_config]
    others = sorted(p.name for p in target.iterdir() if p.name not in names) if target.is_dir() else []
    if others or target.is_file():
        raise ConfigError(
            f"{target} is a file; give a folder"
            if target.is_file()
            else f"{target} holds other files ({', '.join(others[:3])}), which would be lost; give another folder, "
            "or use model.save_pretrained"
        )
    with replace_folder(target) as folder:
        model.save_pretrained(str(folder), save_embedding_layers=False)


def load(base: nn.Module, directory: str | Path, *, is_trainable: bool = False, **options: Any) -> PeftModel:
    """Load an adapter folder, compact or stock, on its base model, after checking it.

    Args:
        base: The model the adapter was trained on; it is changed in place, as by PEFT.
        directory: A local folder with adapter_config.json and adapter_model.safetensors.
        is_trainable: Whether training goes on.
        options: Passed to `PeftModel.from_pretrained` (`adapter_name`, `low_cpu_mem_usage`, ...).

    Raises:
        CheckpointError: a file is missing, damaged, foreign, or made for another model.
    """
    folder = Path(directory)
    if check_folder(folder)["peft_type"] == ATTACHED:
        return load_attached(base, folder, is_trainable=is_trainable, **options)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable, **options)
    except RuntimeError as error:  # torch's message on tensors of other shapes
        raise CheckpointError(
            f"{folder} does not fit this base model: {str(error).splitlines()[-1].strip()}; "
            "load it on the base model it was trained on"
        ) from error
    return model


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that both files are there and readable; return the content of adapter_config.json.

    Raises:
        CheckpointError: naming the file and what to do.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no adapter folder at {folder}; give the folder that holds {CONFIG}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; it is not an adapter folder, or its saving was interrupted")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the JSON of a PEFT config ({error}); restore it") from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder / CONFIG} has the unknown peft_type '{kind}'; it is foreign, a newer qpeft or peft wrote it, "
            "or the module that registers the method (qpeft.register_method) is not imported yet"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            if not list(file.keys()):
                raise CheckpointError(f"{folder / WEIGHTS} holds no tensors; restore it")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged or cut off ({error}); copy it again or use an earlier checkpoint"
        ) from error
    return config
