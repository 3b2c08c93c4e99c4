"""The config of an attached adapter: the host's fields and the generator's."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor

from qpeft.checks import option
from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedConfig, MethodName
from qpeft.core.generator import Generator
from qpeft.core.generator_registry import generator_config, generator_name
from qpeft.core.seeded_init import SeededInit
from qpeft.generator_config import GeneratorConfig

ATTACHED = MethodName("QPEFT_ATTACHED")
_OF_THIS_RUN = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


@dataclass
class AttachedConfig(GeneratedConfig):
    """The content of an attached adapter's adapter_config.json."""

    tensor_prefix = "generator."

    host: dict[str, Any] = option(dict, "The stock adapter's config.")
    generator: dict[str, Any] = option(dict, "The generator's settings.")
    generator_name: str = option("qpa", "The registered name of the generator.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ATTACHED  # type: ignore[assignment]
        self.check_format()

    @classmethod
    def of(cls, host: PeftConfig, generator: GeneratorConfig) -> AttachedConfig:
        """The config of a `host` adapter with this generator."""
        settings = {name: value for name, value in host.to_dict().items() if name != "base_digest"}
        return cls(
            task_type=host.task_type,
            base_model_name_or_path=host.base_model_name_or_path,
            host=_as_json({**settings, "peft_type": host.peft_type}) | _modules_to_save(host),
            generator=_as_json(generator.settings()),
            generator_name=generator_name(generator),
        )

    @property
    def host_name(self) -> str:
        """The host's PEFT type, such as "PREFIX_TUNING"."""
        return str(self.host["peft_type"])

    def to_stock(self) -> PeftConfig:
        return PeftConfig.from_peft_type(**copy.deepcopy(self.host))

    def to_generator(self) -> GeneratorConfig:
        """The generator's configuration. Raises CheckpointError if the generator is not registered."""
        return generator_config(self.generator_name)(**self.generator)

    def without_base(self, slots: Sequence[Slot], init: SeededInit, stored: Mapping[str, Tensor]) -> Generator:
        m = sum(slot.shape.numel() for slot in slots)
        initial = stored.get("initial", torch.empty(0))
        return self.to_generator().make(initial if initial.shape == (m,) else torch.zeros(m), init)

    @property
    def has_stock_form(self) -> bool:
        tuners: dict[Any, Any] = PEFT_TYPE_TO_TUNER_MAPPING
        return getattr(tuners.get(self.host_name), "own_kind", None) is None

    def registered(self) -> type:
        return generator_config(self.generator_name)

    def differences(self, other: AttachedConfig) -> list[str]:
        """Names of the fields, of host and generator, that differ."""
        mine, its = ([c.host, c._all_settings(), {"generator": c.generator_name}] for c in (self, other))
        pairs = [(a, b, name) for a, b in zip(mine, its, strict=True) for name in a.keys() | b.keys()]
        return sorted({name for a, b, name in pairs if name not in _OF_THIS_RUN and a.get(name) != b.get(name)})

    def _all_settings(self) -> dict[str, Any]:
        """The generator's settings with the fields that its release did not have."""
        return _as_json(self.to_generator().settings())

    def description(self) -> dict[str, Any]:
        return {**self.to_generator().description(), "host": self.host_name.lower().replace("_", " ")}


def _modules_to_save(host: Any) -> dict[str, list[str]]:
    """Each name once: PEFT adds classifier heads to the list each time it builds a model."""
    names = getattr(host, "modules_to_save", None)
    return {"modules_to_save": sorted(set(names))} if names else {}


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """The content as read from a file: sets as sorted lists, tuples as lists, enums as their values."""
    return json.loads(json.dumps(settings, default=sorted))
