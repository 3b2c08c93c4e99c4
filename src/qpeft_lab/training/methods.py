"""From a method's name and settings to the model that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.checks import unknown
from qpeft.errors import ConfigError, QpeftError
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.settings import RunSettings
from qpeft_lab.user_files import named_ansatz

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from qpeft.generator_config import GeneratorConfig


_LARGE = 1000  # sizes above it, such as a rank, are worth a forecast
_BYTES_PER_NUMBER = 16

# fields of a PEFT config that the run sets, or that are set when an adapter is saved
_RESERVED = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "format_version",
    "generated",
}


def check_setting(settings: RunSettings, name: str) -> None:
    """Raise ConfigError, with the fields that there are, unless `name` is a field of the method or
    its host.
    """
    if settings.record.trains is not methods.Trains.ADAPTER:
        raise ConfigError(f"method {settings.method} has no fields, got {name}")
    if name == "seed":  # runs with other seeds would begin with the same adapter
        raise ConfigError(
            "the seed of a run is not a field of its method; set seed of the run, or seeds of the"
            " study"
        )
    record = settings.adapter if settings.attaches else settings.record
    known = {
        f.name for f in fields(record.config_class) if not f.metadata.get("filled_in")
    } - _RESERVED
    known |= _generator_fields(settings)
    if name not in known:
        whose = f"host {record.key}" if settings.attaches else f"method {record.key}"
        raise ConfigError(unknown(f"field of {whose}:", name, sorted(known)))


def build_configs(
    settings: RunSettings, head: Sequence[str] = ()
) -> tuple[Any, GeneratorConfig | None]:
    """The PEFT config of a run, the host's if `qpeft.attach` adds the generator; and the config of
    this generator.

    None where there is none. The modules named by `head` are trained in full, in addition to the
    adapter. Raises ConfigError for an unknown field or an invalid value.
    """
    for name in settings.method_settings:
        check_setting(settings, name)
    if settings.record.config is None:
        return None, None
    given = dict(settings.method_settings)
    generator = None
    if "ansatz" in given:
        given["ansatz"] = named_ansatz(given["ansatz"])
    if settings.attaches:
        made = settings.record.generator_class
        ours = {name: given.pop(name) for name in _generator_fields(settings) & given.keys()}
        ours.setdefault("seed", settings.seed)
        generator = _with_config_errors(made, **ours)
    record = settings.adapter if settings.attaches else settings.record
    made = record.config_class
    defaults = dict(record.defaults)
    if given.get("frames") is not None:
        defaults.pop("target_modules", None)  # those of the frame file
    if record.seed_field in {f.name for f in fields(made)}:  # of random projections, for example
        defaults[record.seed_field] = settings.seed * record.seed_step
    defaults |= record.own_hosts.get(settings.host, {})
    is_flag = {f.name: f.type in (bool, "bool") for f in fields(made)}
    for name, value in given.items():
        if is_flag[name] and not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {value!r}")
        if defaults.get(name) is True and not value:  # such as use_dora
            raise ConfigError(
                f"{name} makes {record.title} what it is; leave it out, or choose another method"
            )
    values = {**defaults, **given}
    config = _with_config_errors(made, task_type=TASKS[settings.task].peft_type, **values)
    if head:
        config.modules_to_save = sorted({*(getattr(config, "modules_to_save", None) or ()), *head})
    return config, generator


def check_memory(settings: RunSettings, config: Any, generator: GeneratorConfig | None) -> None:
    """Raise ConfigError if the adapter of a run with a large size needs more memory than is free.

    The forecast is a lower limit: values, gradients and both states of Adam in float32, of what is
    trained and of what is generated.
    """
    values = settings.method_settings.values()
    sizes = [value for value in values if type(value) is int and value > _LARGE]
    if config is None or not sizes:
        return
    import psutil

    import qpeft

    trusted = settings.trust_remote_code
    plan = qpeft.plan(settings.model, config, generator, trust_remote_code=trusted)
    numbers = plan.deployed + (plan.trainable if plan.trainable < plan.deployed else 0)
    needed = numbers * _BYTES_PER_NUMBER / 1e9
    free = psutil.virtual_memory().available / 1e9
    if needed > free:
        raise ConfigError(
            f"this adapter needs at least {needed:,.1f} GB of memory, and {free:,.1f} GB are free:"
            f" it has {plan.deployed:,} parameters; choose a size below {max(sizes):,}"
        )


def virtual_tokens(settings: RunSettings) -> int:
    """Positions of the context that the method, or its host, occupies: those of a prefix or prompt,
    otherwise 0.
    """
    return {**settings.adapter.defaults, **settings.method_settings}.get("num_virtual_tokens", 0)


def _generator_fields(settings: RunSettings) -> set[str]:
    return {f.name for f in fields(settings.record.generator_class)} if settings.attaches else set()


def build_adapter(
    settings: RunSettings,
    base: PreTrainedModel,
    head: Sequence[str] = (),
    batches: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
) -> Any:
    """The model to train: `base` with an adapter, or `base` itself if the method has none.

    `batches` returns training data, for methods that choose what they adapt from it. Raises
    ConfigError as `build_configs`, and for target modules that do not exist.
    """
    _keep_running_statistics(base)
    config, generator = build_configs(settings, head)
    if config is None:
        return base
    _check_head(base, head)
    _check_prompt(settings, base, config)
    from peft import get_peft_model

    import qpeft
    from qpeft.core.config import GeneratedConfig
    from qpeft.core.targets import check_target_modules
    from qpeft_lab.training.initial import read_data

    if isinstance(config, GeneratedConfig):
        config.fill_from_frame_file(base)  # which can name the target modules
    check_target_modules(base, config)
    begin = None
    if batches is not None and generator is None:
        begin = read_data(base, config, batches)
    model = _with_config_errors(get_peft_model, base, config)
    for built in model.peft_config.values():
        for name, value in vars(built).items():
            if isinstance(value, set):  # its order differs between processes, and it is saved
                setattr(built, name, sorted(value))
    if begin is not None:
        begin(model)
    return model if generator is None else qpeft.attach(model, generator)


def _check_head(base: nn.Module, head: Sequence[str]) -> None:
    """Raise ConfigError if PEFT, which compares the ends of names, takes other modules for the head."""
    for name, module in base.named_modules():
        inside = any(name == part or name.startswith(f"{part}.") for part in head)
        if not inside and any(name.endswith(part) for part in head) and [*module.parameters()]:
            raise ConfigError(
                f"the head of {type(base).__name__} is {', '.join(head)}, and PEFT would train"
                f" {name} as a part of it, by the end of its name; use method full, or another base"
            )


def _check_prompt(settings: RunSettings, base: PreTrainedModel, config: Any) -> None:
    """Raise ConfigError for trained tokens in front of a text that a decoder classifies.

    It reads the answer at the last token, and finds that by the ids. PEFT gives it embeddings, so it
    would take the padding.
    """
    from peft import PeftType
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(base.config)
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    gives_embeddings = config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
    if gives_embeddings and is_decoder and not settings.is_language_model:
        raise ConfigError(
            f"{type(base).__name__} would classify the padding of shorter texts with prompt tuning (a"
            " limit of PEFT and transformers); use prefix tuning, or another method"
        )


def _keep_running_statistics(model: nn.Module) -> None:
    """Let BatchNorm layers compute with the means and variances of the base in training, too.

    Batches would change them, and they are in no adapter: the trained model would be another one
    than the saved adapter on its base.
    """
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.register_forward_pre_hook(_in_eval_mode)


def _in_eval_mode(module: nn.Module, _: Any) -> None:
    module.training = False


def _with_config_errors(make: Any, *arguments: Any, **values: Any) -> Any:
    """PEFT does not check types, and refuses values with plain exceptions."""
    try:
        return make(*arguments, **values)
    except QpeftError:
        raise
    except (ValueError, OverflowError) as error:
        raise ConfigError(str(error)) from error
    except (TypeError, AttributeError, IndexError) as error:
        is_about_target = str(error).startswith("Target module")
        what = (
            "adapt this base with the method" if is_about_target else "use a setting of the method"
        )
        hint = "" if is_about_target else ", possibly one of another type"
        raise ConfigError(f"PEFT cannot {what}{hint}: {error}") from error
