"""From a method's name and settings to the model that is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError, QpeftError
from qpeft.training.settings import TrainSettings, unknown

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Method:
    """A PEFT config class by name, and the values it has here unless the user says otherwise."""

    config: str
    defaults: dict[str, Any] = field(default_factory=dict)


_ALL_LINEAR = {"target_modules": "all-linear"}

METHODS = {
    "qpa": Method("qpeft:QPAConfig", _ALL_LINEAR),
    "quantum_peft": Method("qpeft:QuantumPeftConfig", _ALL_LINEAR),
    "lora": Method("peft:LoraConfig", _ALL_LINEAR),
    "dora": Method("peft:LoraConfig", {**_ALL_LINEAR, "use_dora": True}),
    "ia3": Method("peft:IA3Config"),  # PEFT knows the right modules by the model's type
    "vera": Method("peft:VeraConfig", _ALL_LINEAR),
    "prefix": Method("peft:PrefixTuningConfig", {"num_virtual_tokens": 10}),
    "bottleneck": Method("qpeft:BottleneckConfig"),  # finds the feed-forward blocks itself
}

# what a run sets itself, or what is filled in when an adapter is saved
_NOT_SETTINGS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "format_version", "start_hash", "generated"),
}


def config_class(method: str) -> type:
    """The PEFT config class of an adapter method."""
    module, name = METHODS[method].config.split(":")
    return getattr(import_module(module), name)


def build_config(settings: TrainSettings) -> PeftConfig:
    """The PEFT config of a run. Raises ConfigError for a field that the method lacks, or a value it refuses."""
    made = config_class(settings.method)
    known = {f.name for f in fields(made)} - _NOT_SETTINGS
    for name in settings.method_settings:
        if name not in known:
            raise ConfigError(unknown(f"setting of method {settings.method}:", name, sorted(known)))
    seed = {"seed": settings.seed} if "seed" in known else {}
    values = {**METHODS[settings.method].defaults, **seed, **settings.method_settings}
    return _refusals_as_config_errors(made, task_type="CAUSAL_LM", **values)


def build_adapter(settings: TrainSettings, base: PreTrainedModel) -> Any:
    """The model to train: `base` with an adapter, or `base` itself for method full.

    Raises ConfigError for settings that the method refuses and for target modules that are not there.
    """
    if settings.method == "full":
        if settings.method_settings:
            raise ConfigError(f"method full has no settings, got {', '.join(settings.method_settings)}")
        return base
    from peft import get_peft_model

    from qpeft.adapters.targets import check_target_modules

    config = build_config(settings)
    check_target_modules(base, config)
    return _refusals_as_config_errors(get_peft_model, base, config)


def _refusals_as_config_errors(make: Any, *arguments: Any, **values: Any) -> Any:
    """PEFT refuses settings with plain ValueErrors and TypeErrors."""
    try:
        return make(*arguments, **values)
    except QpeftError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
