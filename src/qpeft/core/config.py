"""The common part of the PEFT configs of generated adapters: it ties a checkpoint to its initial values and base."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftConfig

from qpeft.core import model_card
from qpeft.core.binding import Slot
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
Held = TypeVar("Held")


class MethodName(str):
    """A PEFT type of ours: a plain string for JSON and dictionaries that also answers like PEFT's enum."""

    @property
    def value(self) -> str:
        return str.__str__(self)

    name = value

    def __str__(self) -> str:
        return f"PeftType.{self.value}"

    def __reduce__(self) -> tuple[type[MethodName], tuple[str]]:
        return (type(self), (self.value,))


# PEFT adds these to a config only after it has built the tuner
_HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def own_copy(config: Any) -> Any:
    """A config of the adapter's own, so that the user's can be used again; with the heads that PEFT trains whole."""
    copied = copy.copy(config)
    heads = _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())
    if heads:
        copied.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *heads]))
    return copied


_FACTORS = ("lora_alpha", "alpha", "randlora_alpha", "psoft_alpha", "scaling", "alpha_pattern")  # names PEFT has for it


def check_factors(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if a setting multiplies the adapter by what is no number, or is 0 or infinite in float32."""
    limits = torch.finfo(torch.float32)
    for name in _FACTORS:
        found = settings.get(name)
        for factor in found.values() if isinstance(found, Mapping) else [found] if found is not None else []:
            is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
            if not is_number or not limits.tiny <= abs(factor) <= limits.max:
                raise ConfigError(f"{name} multiplies the adapter: it must be a number other than 0, got {factor!r}")


@dataclass
class GeneratedConfig(SealedConfig):
    """What ties a compact checkpoint to its initial values and its base model."""

    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the compact format."})
    start_hash: str | None = field(
        default=None, metadata={"help": "SHA-256 of the integers drawn for the initial values; filled in when bound."}
    )
    generated: list[Any] | None = field(
        default=None,
        metadata={"help": "Name and shape of each generated tensor in order; filled in when bound."},
    )

    def check_format(self) -> None:
        """Raise CheckpointError if a newer qpeft wrote this config."""
        if not isinstance(self.format_version, int) or self.format_version > FORMAT_VERSION:
            raise CheckpointError(
                f"this adapter has format version {self.format_version}, newer than the {FORMAT_VERSION} that this "
                "qpeft reads; install a newer qpeft"
            )

    def to_stock(self) -> PeftConfig:
        """The stock config of the adapter that is generated; the exported folder carries it."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """The method, its paper and the settings that matter, for model cards and qpeft.json."""
        raise NotImplementedError

    @property
    def has_stock_form(self) -> bool:
        """Whether `qpeft.export` can write the adapter that is generated."""
        return True

    def registered(self) -> type:
        """The class whose module must be imported before a folder of this config is loaded."""
        return type(self)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        config = json.loads(json.dumps(self.to_dict(), default=list))
        config["auto_mapping"] = kwargs.get("auto_mapping_dict")
        model_card.write_compact_card(
            Path(save_directory), config, self.description(), self.registered(), has_stock_form=self.has_stock_form
        )

    def check_start(self, digest: str) -> None:
        """Raise CheckpointError if the adapter was trained from other initial values than those drawn now."""
        if self.start_hash not in (None, digest):
            raise CheckpointError(
                f"the initial values drawn from seed {getattr(self, 'seed', None)} have hash {digest[:12]}, the "
                f"checkpoint was trained from {str(self.start_hash)[:12]}: its adapter_config.json was edited or is "
                "damaged; restore the original file"
            )


@dataclass
class GeneratedLoraConfig(GeneratedConfig, LoraConfig):
    """A generated LoRA adapter, with LoRA's own fields."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors(vars(self))

    def refuse_lora_options(self, method: str, allowed: Sequence[str] = ()) -> None:
        """Raise ConfigError for LoRA options that `method` does not generate."""
        variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
        for name in (*variants, "target_parameters", "use_qalora", "layer_replication"):
            if name not in allowed and getattr(self, name, None):
                raise ConfigError(f"{method} does not generate LoRA with {name}; leave it unset")

    def to_stock(self) -> LoraConfig:
        """The LoraConfig of the adapter that is generated; the exported folder carries it."""
        names = {f.name for f in dataclasses.fields(LoraConfig) if f.init} - {"peft_type", "runtime_config"}
        return LoraConfig(**{name: copy.deepcopy(getattr(self, name)) for name in names})


def in_saved_order(found: Sequence[tuple[Slot, Held]], saved: list[Any]) -> list[tuple[Slot, Held]]:
    """The tensors in the order of the checkpoint being loaded.

    Raises:
        CheckpointError: the checkpoint's table of tensors is damaged or describes another base model.
    """
    here = {slot.label: (slot, held) for slot, held in found}
    try:
        shapes = {label: tuple(shape) for label, shape in saved}
    except (TypeError, ValueError) as error:
        raise CheckpointError("the table of generated tensors in adapter_config.json is damaged; restore it") from error
    for label in [*shapes, *here]:
        expected = tuple(here[label][0].shape) if label in here else "no such tensor"
        if shapes.get(label, "no such tensor") != expected:
            raise CheckpointError(
                f"saved table does not match this model: {label} has shape "
                f"{_shown(shapes.get(label))}, expected {_shown(expected)}; load the adapter on its own base model"
            )
    return [here[label] for label in shapes]


def _shown(shape: Any) -> str:
    return str(list(shape)) if isinstance(shape, tuple) else "nothing"
