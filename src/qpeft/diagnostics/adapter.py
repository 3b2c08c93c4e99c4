"""A trained adapter, read from its folder without the weights of its base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_folder, load
from qpeft.core.config import GeneratedConfig
from qpeft.core.generator import Generator
from qpeft.core.generator_holder import holder_of
from qpeft.core.generator_registry import generator_name
from qpeft.core.load_checks import check_tensors
from qpeft.core.meta_model import on_meta
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.methods.registry import find_by_config

_LORA = "LORA"  # PEFT's type
_LARGEST = 2**31  # elements of one tensor; a table with more is damaged
Factors = dict[str, tuple[Tensor, Tensor]]  # by module: B (rows, r) and A (r, columns)


@dataclass(frozen=True)
class SavedAdapter:
    """Config and tensors of an adapter folder.

    `generator` is trained, and None where only the base can make it. `exported` are the tensors of the LoRA in the
    folder `exported` of the same run, for methods that generate nothing.
    """

    folder: Path
    config: PeftConfig
    tensors: dict[str, Tensor]
    generator: Generator | None = None
    exported: dict[str, Tensor] | None = None

    @property
    def method(self) -> str:
        """The method's key, as in `qpeft train --method`."""
        if (found := find_by_config(self.config)) is not None:
            return found.key
        if isinstance(self.config, GeneratedConfig):
            return generator_name(self.config.to_generator())
        return _kind(self.config).lower()

    def factors(self, base: nn.Module | str | None = None) -> Factors:
        """The LoRA factors that the adapter holds, generates or exports, without LoRA's scaling; empty for other hosts.

        Args:
            base: The base model, for methods whose generator depends on it; only its shapes are used. Default: the base
                that the folder names.

        Raises:
            ConfigError: The base is not found, or the adapter has no such factors.
        """
        stock = self.config.to_stock() if isinstance(self.config, GeneratedConfig) else self.config
        if getattr(stock, "target_parameters", None):
            raise ConfigError("the ranks of updates of experts (target_parameters) are not measured")
        if isinstance(self.config, GeneratedConfig):
            return _paired(self._generated(base))
        if _kind(self.config) == _LORA or self.exported is not None:
            return _paired(self.tensors if self.exported is None else self.exported)
        raise ConfigError(f"method {self.method} generates no update of a weight: there is no matrix to take a rank of")

    def trained(self) -> Mapping[str, Tensor]:
        """The trained values by name.

        They are the saved tensors, but of an adapter that refers to a frame file: it has one tensor for all of them, in
        an order that depends on the base model.
        """
        if _refers_to_frames(self.config):
            return dict(self._on_meta(None).named_parameters())
        return self.tensors

    def _on_meta(self, base: nn.Module | str | None) -> Any:
        """The adapter on the shapes of its base model. Raises ConfigError if the folder names none."""
        base = base or self.config.base_model_name_or_path
        if not base:
            raise ConfigError(f"{self.folder / CONFIG} has no base_model_name_or_path, whose shapes are needed; add it")
        return load(on_meta(base, self.config.task_type), self.folder)

    @torch.no_grad()
    def _generated(self, base: nn.Module | str | None) -> dict[str, Tensor]:
        if self.generator is not None:
            slots = _slots(self.folder, self.config)
            parts = self.generator().split([slot.shape.numel() for slot in slots])
            return {slot.label: part.view(slot.shape) for slot, part in zip(slots, parts, strict=True)}
        model = self._on_meta(base)
        holder = holder_of(model)
        assert holder is not None
        if getattr(holder.generators["default"], "needs_fit", False):
            raise ConfigError(
                f"{self.folder} was saved without its frames, so its matrices are unknown; diagnose the adapter "
                "exported from it"
            )
        return holder.stock_state(model, "default")


def read_adapter(folder: str | Path) -> SavedAdapter:
    """The adapter in `folder`.

    Raises:
        CheckpointError: A file is missing, damaged or foreign.
        ConfigError: No measurement applies to this kind of adapter.
    """
    folder = Path(folder)
    config, exported = _config(folder), None
    if not (isinstance(config, GeneratedConfig) or hasattr(config, "trained_angles") or _kind(config) == _LORA):
        exported = _exported_lora(folder, _kind(config))
    tensors = load_file(folder / WEIGHTS)
    generator = _generator(folder, config, tensors) if isinstance(config, GeneratedConfig) else None
    return SavedAdapter(folder, config, tensors, generator, exported)


def _exported_lora(folder: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of the LoRA that the run of this adapter exported."""
    exported = folder.parent / "exported"
    if folder.name == "adapter" and (exported / CONFIG).is_file() and _kind(_config(exported)) == _LORA:
        return load_file(exported / WEIGHTS)
    raise ConfigError(
        f"{folder} is an adapter of type {kind}, to which no measurement applies. Ranks apply to what it exports if "
        "that is a LoRA: diagnose the folder of qpeft export, or the run folder of qpeft train"
    )


def _generator(folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> Generator | None:
    """The trained generator; None if only the base can make it."""
    if _refers_to_frames(config):  # its short config has no table of tensors
        return None
    prefix = config.tensor_prefix
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    init = SeededInit(getattr(config.to_generator(), "seed", 0))
    with warnings.catch_warnings():  # about its size, which appeared when it was trained
        warnings.simplefilter("ignore")
        generator = config.without_base(_slots(folder, config), init, own)
    if generator is None:
        return None
    config.check_start(init.hexdigest())
    state = generator.unpack(own)
    check_tensors(state, generator.state_dict())
    generator.load_state_dict(state)
    return generator


def _refers_to_frames(config: Any) -> bool:
    return getattr(config, "frames_sha256", None) is not None


def _slots(folder: Path, config: Any) -> list[Slot]:
    """The generated tensors in the order of the flat vector. Raises CheckpointError if their table is damaged."""
    try:
        table = [(str(label), torch.Size(shape)) for label, shape in config.generated]
        if wrong := [label for label, shape in table if not 0 < shape.numel() < _LARGEST]:
            raise ValueError(f"the shape of {wrong[0]}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the table of generated tensors in {folder / CONFIG} is damaged ({error}); restore it"
        ) from error
    return [Slot(nn.Module(), "", label, shape, torch.float32) for label, shape in table]


def _config(folder: Path) -> PeftConfig:
    try:
        # by its own class, which takes the settings of a frame file into account
        config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[check_folder(folder)["peft_type"]].from_pretrained(str(folder))
        if isinstance(config, GeneratedConfig):
            config.to_generator()
        return config
    except InputError:
        raise
    except Exception as error:  # a field of another type can fail anywhere in PEFT
        raise CheckpointError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); restore it") from error


def _kind(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _paired(state: Mapping[str, Tensor]) -> Factors:
    """lora_B and lora_A of each module that has both; convolutions as matrices."""
    found: Factors = {}
    for name, a in state.items():
        b = state.get(name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"))
        if b is not None and (".lora_A" in name or ".lora_embedding_A" in name):
            module = name.partition(".lora_")[0].removeprefix("base_model.model.")
            found[module] = b.flatten(1), a.flatten(1)
    return found
