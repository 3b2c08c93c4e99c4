"""QPA over LoRA: a circuit and a small MLP generate every number of a stock LoRA adapter."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn

from qpeft.adapters import lora_start, model_card
from qpeft.adapters.binding import Binding, Slot
from qpeft.adapters.generated import GeneratedMixin, find_slots
from qpeft.adapters.targets import check_target_modules
from qpeft.errors import CheckpointError, ConfigError
from qpeft.generators.qpa import QPAGenerator
from qpeft.generators.seeded_start import SeededStart
from qpeft.generators.settings import QPAGeneratorConfig

FORMAT_VERSION = 1


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


QPA = MethodName("QPEFT_QPA")


@dataclass
class QPAConfig(QPAGeneratorConfig, LoraConfig):
    """LoRA's own settings (r, lora_alpha, target_modules, use_dora, rank_pattern, ...) and the generator's.

    Example::

        model = get_peft_model(base, QPAConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that QPA cannot generate.
    """

    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the compact format."})
    start_hash: str | None = field(
        default=None, metadata={"help": "SHA-256 of the integers drawn for the start; filled in when bound."}
    )
    generated: list[Any] | None = field(
        default=None,
        metadata={"help": "Name and shape of each generated tensor in order; filled in when bound."},
    )

    def __post_init__(self) -> None:
        LoraConfig.__post_init__(self)
        QPAGeneratorConfig.__post_init__(self)
        self.peft_type = QPA  # type: ignore[assignment]
        if not isinstance(self.format_version, int) or self.format_version > FORMAT_VERSION:
            raise CheckpointError(
                f"this adapter has format version {self.format_version}, newer than the {FORMAT_VERSION} that this "
                "qpeft reads; install a newer qpeft"
            )
        _check_lora_options(self)

    @classmethod
    def official(cls, **settings: Any) -> Self:
        """The published experiment: rank 4, alpha 8, dropout 0.05 on lm_head, and the published generator."""
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["lm_head"]}
        return super().official(**{**lora, **settings})

    def to_stock(self) -> LoraConfig:
        """The LoraConfig of the adapter that is generated; the exported folder carries it."""
        names = {f.name for f in dataclasses.fields(LoraConfig) if f.init} - {"peft_type", "runtime_config"}
        return LoraConfig(**{name: copy.deepcopy(getattr(self, name)) for name in names})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        model_card.write_compact_card(Path(save_directory), json.loads(json.dumps(self.to_dict(), default=list)))


class QPAModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QPAConfig."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, so that a config can be used again: what binding records in it belongs to this adapter alone
        self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        self._check_targets(model, self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _check_targets(self, model: nn.Module, config: Any) -> None:
        try:
            check_target_modules(model, config)
        except ConfigError as error:
            if config.generated is None:
                raise
            raise CheckpointError(f"this adapter belongs to another base model: {error}") from error

    def _make_binding(self, adapter_name: str) -> Binding:
        config = self.peft_config[adapter_name]
        assert isinstance(config, QPAConfig)
        found = _in_order(find_slots(self.model, adapter_name, LoraLayer), config)
        slots = [slot for slot, _ in found]
        start = SeededStart(config.seed)
        initial = [
            lora_start.draw_start(slot, layer, adapter_name, config.init_lora_weights, start).flatten().cpu()
            for slot, layer in found
        ]
        if config.init_mode == "residual":
            lora_start.check_not_stationary(slots, initial)
        generator = QPAGenerator(config, torch.cat(initial), start).to(_device(slots))
        _check_start(config, start.hexdigest())
        config.start_hash = start.hexdigest()
        config.generated = [[slot.label, list(slot.shape)] for slot in slots]
        return Binding(generator, slots)


def _check_lora_options(config: QPAConfig) -> None:
    if config.init_lora_weights not in lora_start.DRAWN_INITS:
        raise ConfigError(
            f"init_lora_weights='{config.init_lora_weights}' looks at data or weights, so its start cannot be drawn "
            f"again from a seed; choose one of {', '.join(map(repr, lora_start.DRAWN_INITS))}"
        )
    variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    for name in (*variants, "target_parameters", "use_qalora", "layer_replication"):
        if name != "use_dora" and getattr(config, name, None):
            raise ConfigError(f"QPA does not generate LoRA with {name}; leave it unset")


def _in_order(found: list[tuple[Slot, Any]], config: QPAConfig) -> list[tuple[Slot, Any]]:
    """PEFT's order, the published one (lora_B before lora_A), or that of the checkpoint being loaded."""
    if config.generated is not None:
        return _as_saved(found, config.generated)
    if config.vector_order == "peft":
        return found
    layers = {id(layer): i for i, (_, layer) in enumerate(reversed(found))}
    return sorted(found, key=lambda pair: (-layers[id(pair[1])], ".lora_B" not in pair[0].label))


def _as_saved(found: list[tuple[Slot, Any]], saved: list[Any]) -> list[tuple[Slot, Any]]:
    here = {slot.label: (slot, layer) for slot, layer in found}
    try:
        shapes = {label: tuple(shape) for label, shape in saved}
    except (TypeError, ValueError) as error:
        raise CheckpointError("the table of generated tensors in adapter_config.json is damaged; restore it") from error
    for label in [*shapes, *here]:
        expected = tuple(here[label][0].shape) if label in here else "no such tensor"
        if shapes.get(label, "no such tensor") != expected:
            raise CheckpointError(
                f"saved QPA table does not match this model: {label} has shape "
                f"{_shown(shapes.get(label))}, expected {_shown(expected)}; load the adapter on its own base model"
            )
    return [here[label] for label in shapes]


def _shown(shape: Any) -> str:
    return str(list(shape)) if isinstance(shape, tuple) else "nothing"


def _check_start(config: QPAConfig, digest: str) -> None:
    if config.start_hash not in (None, digest):
        raise CheckpointError(
            f"the start drawn from seed {config.seed} has hash {digest[:12]}, the checkpoint was trained from "
            f"{config.start_hash[:12]}: its adapter_config.json was edited or is damaged; restore the original file"
        )


def _device(slots: list[Slot]) -> torch.device:
    """Where the adapter lives; the CPU if that is the meta device: a generator always has real numbers."""
    parameter = slots[0].owner._parameters[slots[0].name]
    assert parameter is not None
    return torch.device("cpu") if parameter.is_meta else parameter.device
