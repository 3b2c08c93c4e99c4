"""The config of an adapter over which `qpeft.attach` put a generator: the host's own settings and the generator's."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from peft import PeftConfig

from qpeft.adapters.generated_config import GeneratedConfig, MethodName
from qpeft.errors import ConfigError
from qpeft.generators.settings import QPAGeneratorConfig

ATTACHED = MethodName("QPEFT_ATTACHED")
_OF_THIS_RUN = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


@dataclass
class AttachedConfig(GeneratedConfig):
    """What adapter_config.json of an attached adapter holds."""

    host: dict[str, Any] = field(default_factory=dict, metadata={"help": "The stock adapter's config."})
    generator: dict[str, Any] = field(default_factory=dict, metadata={"help": "The generator's settings."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ATTACHED  # type: ignore[assignment]
        self.check_format()

    @classmethod
    def of(cls, host: PeftConfig, generator: QPAGeneratorConfig) -> AttachedConfig:
        """The config of `host` under a generator with these settings."""
        settings = {f.name: getattr(generator, f.name) for f in fields(QPAGeneratorConfig)}
        return cls(
            task_type=host.task_type,
            base_model_name_or_path=host.base_model_name_or_path,
            host=_as_json({**host.to_dict(), "peft_type": host.peft_type}) | _modules_to_save(host),
            generator=_as_json(settings),
        )

    @property
    def host_name(self) -> str:
        """The host's PEFT type, such as "PREFIX_TUNING"."""
        return str(self.host["peft_type"])

    def to_stock(self) -> PeftConfig:
        """The host's config."""
        return PeftConfig.from_peft_type(**copy.deepcopy(self.host))

    def to_generator(self) -> QPAGeneratorConfig:
        """The generator's settings."""
        return QPAGeneratorConfig(**self.generator)

    def differences(self, other: AttachedConfig) -> list[str]:
        """Names of the settings, of host and generator, in which the two differ."""
        mine, its = ({**asdict(c)["host"], **asdict(c)["generator"]} for c in (self, other))
        return sorted(k for k in mine.keys() | its.keys() if k not in _OF_THIS_RUN and mine.get(k) != its.get(k))

    def description(self) -> dict[str, Any]:
        named = ("n_layers", "feature_source", "activation", "seed")
        return {
            "method": "QPA (arXiv 2410.09846)",
            "host": self.host_name.lower().replace("_", " "),
            **{name: self.generator[name] for name in named},
        }


def _modules_to_save(host: Any) -> dict[str, list[str]]:
    """Each name once: PEFT adds classifiers' heads to the list every time that it builds a model."""
    names = getattr(host, "modules_to_save", None)
    return {"modules_to_save": sorted(set(names))} if names else {}


class AttachedTuner:
    """Stands where PEFT looks for a tuner: a PEFT call alone can build no attached adapter."""

    container = "qpeft_generator"

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            "this is an adapter with a generator attached: load it with qpeft.load(base, folder), or make one with "
            "qpeft.attach(get_peft_model(base, host_config), QPAGeneratorConfig(...))"
        )


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: sets as sorted lists, tuples as lists, enums as their values."""
    return json.loads(json.dumps(settings, default=sorted))
