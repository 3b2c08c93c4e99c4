"""From a method's name and settings to the model that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.errors import ConfigError, QpeftError
from qpeft.methods import Trains
from qpeft.names import unknown
from qpeft.training.settings import TrainSettings
from qpeft.training.task_types import TASKS

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from qpeft.generator_config import GeneratorConfig


# what a run sets itself, or what is filled in when an adapter is saved
_NOT_SETTINGS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "format_version", "start_hash", "generated"),
    "weights_sha256",
}


def build_config(settings: TrainSettings) -> PeftConfig:
    """The PEFT config of a run: where a generator goes over another host than LoRA, the host's.

    Raises ConfigError for a field that the method lacks, or a value it refuses.
    """
    if settings.record.trains is not Trains.ADAPTER:
        _refuse_settings(settings)
    record = settings.adapter if settings.attaches else settings.record
    made = record.config_class
    known = {f.name for f in fields(made) if not f.metadata.get("filled_in")} - _NOT_SETTINGS
    ours = _generator_fields(settings) if settings.attaches else set()
    for name in settings.method_settings:
        if name not in known | ours:
            whose = f"host {record.key}" if settings.attaches else f"method {record.key}"
            raise ConfigError(unknown(f"setting of {whose}:", name, sorted(known | ours)))
    _check_numbers(made, settings.method_settings)
    given = {name: value for name, value in settings.method_settings.items() if name not in ours}
    seed = {"seed": settings.seed} if "seed" in known else {}
    values = {**record.defaults, **record.own_hosts.get(settings.host, {}), **seed, **given}
    return _refusals_as_config_errors(made, task_type=TASKS[settings.task].peft_type, **values)


def _check_numbers(made: type, given: dict[str, Any]) -> None:
    """A study file can hold a text where PEFT computes with a number, before PEFT looks."""
    for known in fields(made):
        value = given.get(known.name)
        if isinstance(known.default, int | float) and not isinstance(known.default, bool) and isinstance(value, str):
            raise ConfigError(f"{known.name} must be a number, got {value!r}")


def virtual_tokens(method: str, host: str, given: Mapping[str, Any]) -> int:
    """Positions of the context that a prefix or a prompt takes, as method or as host; 0 for others."""
    record = methods.named(method)
    adapter = record if record.generator is None else methods.get(host)
    return {**adapter.defaults, **given}.get("num_virtual_tokens", 0)


def build_generator(settings: TrainSettings) -> GeneratorConfig | None:
    """The generator that goes over another host than LoRA; None for every other run. Raises ConfigError."""
    if not settings.attaches:
        return None
    ours = _generator_fields(settings)
    given = {name: value for name, value in settings.method_settings.items() if name in ours}
    return _refusals_as_config_errors(settings.record.generator_class, **{"seed": settings.seed, **given})


def _generator_fields(settings: TrainSettings) -> set[str]:
    return {f.name for f in fields(settings.record.generator_class)}


def build_adapter(settings: TrainSettings, base: PreTrainedModel, head: Sequence[str] = ()) -> Any:
    """The model to train: `base` with an adapter, or `base` itself where the method has none.

    The modules named by `head` are trained whole beside the adapter.
    Raises ConfigError for settings that the method refuses and for target modules that are not there.
    """
    if settings.record.config is None:
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
