"""From a method's name and settings to the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError, QpeftError
from qpeft.training.settings import TrainSettings, unknown

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from qpeft.methods.qpa.settings import QPAGeneratorConfig


@dataclass(frozen=True)
class Method:
    """A PEFT config class by name, and the values it has here unless the user says otherwise."""

    config: str
    defaults: dict[str, Any] = field(default_factory=dict)


_ALL_LINEAR = {"target_modules": "all-linear"}

METHODS = {
    "qpa": Method("qpeft:QPAConfig", _ALL_LINEAR),
    "quantum_peft": Method("qpeft:QuantumPeftConfig", _ALL_LINEAR),
    "qaa": Method("qpeft:QAAConfig"),  # finds the query and value projections itself
    "sora": Method("qpeft:SoRAConfig", _ALL_LINEAR),
    "lora": Method("peft:LoraConfig", _ALL_LINEAR),
    "dora": Method("peft:LoraConfig", {**_ALL_LINEAR, "use_dora": True}),
    "ia3": Method("peft:IA3Config"),  # PEFT knows the right modules by the model's type
    "vera": Method("peft:VeraConfig", _ALL_LINEAR),
    "uni_lora": Method("peft:UniLoraConfig", _ALL_LINEAR),
    "tiny_lora": Method("peft:TinyLoraConfig", _ALL_LINEAR),
    "fourierft": Method("peft:FourierFTConfig", _ALL_LINEAR),
    "prefix": Method("peft:PrefixTuningConfig", {"num_virtual_tokens": 10}),
    "prompt": Method("peft:PromptTuningConfig", {"num_virtual_tokens": 10}),
    "loha": Method("peft:LoHaConfig", _ALL_LINEAR),
    "ln_tuning": Method("peft:LNTuningConfig"),
    "pissa": Method("peft:LoraConfig", {**_ALL_LINEAR, "init_lora_weights": "pissa"}),
    "head": Method("peft:LoraConfig", {"target_modules": "dummy-target-modules"}),  # PEFT's name for no module at all
    "bottleneck": Method("qpeft:BottleneckConfig"),  # finds the feed-forward blocks itself
}

# PEFT knows no task of images; what its task types add is the head, which a run names itself
_PEFT_TASKS = {"causal-lm": "CAUSAL_LM", "text-classification": "SEQ_CLS", "image-classification": None}

# what a run sets itself, or what is filled in when an adapter is saved
_NOT_SETTINGS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "format_version", "start_hash", "generated"),
    "weights_sha256",
    *("sora_lambda", "planned_steps"),
}


def config_class(method: str) -> type:
    """The PEFT config class of an adapter method."""
    module, name = METHODS[method].config.split(":")
    return getattr(import_module(module), name)


def build_config(settings: TrainSettings) -> PeftConfig:
    """The PEFT config of a run: where a generator goes over another host than LoRA, the host's.

    Raises ConfigError for a field that the method lacks, or a value it refuses.
    """
    if settings.method == "head":
        _refuse_settings(settings)
    method = settings.host if settings.attaches else settings.method
    made = config_class(method)
    known = {f.name for f in fields(made)} - _NOT_SETTINGS
    ours = _generator_fields() if settings.attaches else set()
    for name in settings.method_settings:
        if name not in known | ours:
            whose = f"host {method}" if settings.attaches else f"method {method}"
            raise ConfigError(unknown(f"setting of {whose}:", name, sorted(known | ours)))
    _check_numbers(made, settings.method_settings)
    given = {name: value for name, value in settings.method_settings.items() if name not in ours}
    seed = {"seed": settings.seed} if "seed" in known else {}
    dora = {"use_dora": True} if (settings.method, settings.host) == ("qpa", "dora") else {}
    values = {**METHODS[method].defaults, **dora, **seed, **given}
    return _refusals_as_config_errors(made, task_type=_PEFT_TASKS[settings.task], **values)


def _check_numbers(made: type, given: dict[str, Any]) -> None:
    """A study file can hold a text where PEFT computes with a number, before PEFT looks."""
    for known in fields(made):
        value = given.get(known.name)
        if isinstance(known.default, int | float) and not isinstance(known.default, bool) and isinstance(value, str):
            raise ConfigError(f"{known.name} must be a number, got {value!r}")


def build_generator(settings: TrainSettings) -> QPAGeneratorConfig | None:
    """The generator that goes over another host than LoRA; None for every other run. Raises ConfigError."""
    if not settings.attaches:
        return None
    from qpeft.methods.qpa.settings import QPAGeneratorConfig

    ours = _generator_fields()
    given = {name: value for name, value in settings.method_settings.items() if name in ours}
    return _refusals_as_config_errors(QPAGeneratorConfig, **{"seed": settings.seed, **given})


def _generator_fields() -> set[str]:
    from qpeft.methods.qpa.settings import QPAGeneratorConfig

    return {f.name for f in fields(QPAGeneratorConfig)}


def build_adapter(settings: TrainSettings, base: PreTrainedModel, head: Sequence[str] = ()) -> Any:
    """The model to train: `base` with an adapter, or `base` itself for method full.

    The modules named by `head` are trained whole beside the adapter.
    Raises ConfigError for settings that the method refuses and for target modules that are not there.
    """
    if settings.method == "full":
        _refuse_settings(settings)
        return base
    from peft import get_peft_model

    import qpeft
    from qpeft.core.targets import check_target_modules

    config = build_config(settings)
    train_whole(config, head)
    check_target_modules(base, config)
    model = _refusals_as_config_errors(get_peft_model, base, config)
    for built in model.peft_config.values():
        _put_in_order(built)
    generator = build_generator(settings)
    return model if generator is None else qpeft.attach(model, generator)


def _put_in_order(config: Any) -> None:
    """Sets of names as sorted lists: the order of a set is another one in every process, and it is saved."""
    for name, value in list(vars(config).items()):
        if isinstance(value, set):
            setattr(config, name, sorted(value))


def train_whole(config: Any, modules: Sequence[str]) -> None:
    """Add to the modules that a PEFT config trains whole, beside the adapter."""
    if modules:
        config.modules_to_save = sorted({*(getattr(config, "modules_to_save", None) or ()), *modules})


def _refuse_settings(settings: TrainSettings) -> None:
    if settings.method_settings:
        raise ConfigError(f"method {settings.method} has no settings, got {', '.join(settings.method_settings)}")


def _refusals_as_config_errors(make: Any, *arguments: Any, **values: Any) -> Any:
    """PEFT refuses settings with plain ValueErrors and TypeErrors."""
    try:
        return make(*arguments, **values)
    except QpeftError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
