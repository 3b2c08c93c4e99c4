"""The base classes of qpeft's PEFT configs: they record weights and base, refuse other weights, and
write a card.
"""

from __future__ import annotations

import copy
import dataclasses
import reprlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from qpeft.checks import check_fields, check_finite, option, warn_without_effect
from qpeft.core import model_card
from qpeft.core.slots import DRAWN_INITS, Slot
from qpeft.errors import CheckpointError, ConfigError, QpeftWarning
from qpeft.files import as_json, file_hash
from qpeft.generator_config import GeneratorConfig

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 2  # 1: before release 0.2
# fields on which the generated tensors do not depend, but their effect does
_SCALE = ("alpha_pattern", "lora_alpha", "use_rslora", "alora_invocation_tokens")
# of a host, whose fields have other names, all but these and those of dropout
_NO_SCALE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    "target_modules",  # which the table of generated tensors fixes
}


class MethodName(str):
    """A PEFT type from outside PEFT: a plain string for JSON and dictionaries, with the attributes
    of PEFT's enum.
    """

    @property
    def value(self) -> str:
        """The plain string, such as "QPEFT_QPA"."""
        return str.__str__(self)

    name = value

    def __str__(self) -> str:
        return f"PeftType.{self.value}"


def type_name(config: Any) -> str:
    """The type of an adapter as a name, such as qpa or lora."""
    kind = config.peft_type
    return str(getattr(kind, "value", kind)).removeprefix("QPEFT_").lower()


# PEFT adds these to a config only after it has built the tuner
_HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def own_copy(config: Any) -> Any:
    """A copy of the config, so that the user's can be used again, with the heads that PEFT
    trains.

    Raises ConfigError if a field that was set since the config was made is not one to make it with.
    """
    type(config)(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init})
    copied = copy.copy(config)
    task = getattr(config.task_type, "value", config.task_type)
    heads = _HEADS.get(str(task))
    if heads is not None:
        names = [*(config.modules_to_save or ()), *heads]
        copied.modules_to_save = list(dict.fromkeys(names))  # each once
    return copied


def refuse_lora_options(
    config: Any, method: str, allowed: Sequence[str] = (), more: Sequence[str] = ()
) -> None:
    """Raise ConfigError if `config` sets a variant of LoRA, apart from those `allowed`, or one of
    `more` options.

    Also for initial values that depend on data or weights, because they cannot be drawn again from
    a seed.
    """
    if config.init_lora_weights not in DRAWN_INITS:
        raise ConfigError(
            f"{method} needs one of init_lora_weights={', '.join(map(repr, DRAWN_INITS))}"
        )
    variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    others = (
        "target_parameters",
        "use_qalora",
        "qalora_group_size",
        "layer_replication",
        "megatron_config",
    )
    for name in (*variants, *others, *more):
        value = getattr(config, name, None)
        if name not in allowed and value and value != getattr(LoraConfig, name, None):
            raise ConfigError(f"{method} cannot be combined with LoRA's {name}; leave it unset")
    if isinstance(getattr(config, "runtime_config", None), dict):
        raise ConfigError("runtime_config must be a peft.LoraRuntimeConfig, got a dict")


@dataclass
class AdapterConfig(PeftConfig):
    """Mixed in first. PEFT saves the weights before the config, and loads the config before the
    weights.

    Raises ConfigError for positional arguments, and for numbers that are not finite.
    """

    weights_sha256: str | None = option(
        None, "SHA-256 of adapter_model.safetensors; filled in when saved.", filled_in=True
    )
    base_digest: str | None = option(
        None, "Digest of the base model's adapted weights; filled in when bound.", filled_in=True
    )
    embeddings: list[str] | None = option(
        None, "Tensors of a resized vocabulary in the file; filled in when saved.", filled_in=True
    )

    # the PEFT type; a config without it sets `peft_type` to a MethodName itself
    method_name: ClassVar[str] = ""
    # whether its values have a meaning on its own base model only
    depends_on_base: ClassVar[bool] = False

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        if args:  # the first field of PEFT's configs is the task
            example = f"r={args[0]!r}" if hasattr(cls, "r") else 'target_modules="all-linear"'
            raise ConfigError(
                f"{cls.__name__} takes keyword arguments only; name the field, such as {example}"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, tuple):
                setattr(self, name, list(value))  # as it is read back from JSON
        for name, value in vars(self).items():
            check_finite(name, value)
        to_save: Any = getattr(self, "modules_to_save", None)
        if isinstance(to_save, str):  # of which PEFT takes each letter for a name
            self.modules_to_save = [to_save]
        try:
            super().__post_init__()
        except ValueError as error:  # PEFT refuses it
            raise ConfigError(str(error)) from error
        if self.method_name:
            self.peft_type = MethodName(self.method_name)  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The fields as in adapter_config.json; sets are sorted, so that every process saves the
        same.
        """
        fields = super().to_dict()
        for name, value in fields.items():
            if isinstance(value, set):
                fields[name] = sorted(value, key=str)
            elif isinstance(value, tuple):
                fields[name] = list(value)
        return fields

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        weights = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
        # PEFT gives this option, and has written the weights. transformers' own `save_pretrained` does
        # not, and writes them afterwards: a file that is there now is of an earlier save. So a config
        # that somebody saves alone has no hash.
        is_written = "auto_mapping_dict" in kwargs and weights.is_file()
        self.weights_sha256 = file_hash(weights) if is_written else None
        super().save_pretrained(save_directory, **kwargs)
        model_card.write_card(Path(save_directory), type(self.to_generator()))

    def to_generator(self) -> Any:
        """The config whose class must be imported before a folder is loaded: this, or that of an
        attached generator.
        """
        return self

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As PEFT's; CheckpointError if a local folder's weights were not saved with this config,
        or it is damaged.

        Plain `PeftModel.from_pretrained` calls it; `qpeft.load` makes the config by `config_of`.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        with _naming(folder / CONFIG_NAME):
            config: Any = super().from_pretrained(
                pretrained_model_name_or_path, subfolder=subfolder, **kwargs
            )
        # PEFT returns a config of the folder's own class
        check_weights(folder, vars(config))
        _check_scale(config, folder / CONFIG_NAME)
        return config


def config_of(content: Mapping[str, Any], path: Path) -> PeftConfig:
    """The config that PEFT makes of the `content` of an adapter_config.json.

    Raises CheckpointError, with the `path` of the file, if a field is invalid.
    """
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]]
    fields = {name: value for name, value in content.items() if name != "runtime_config"}
    with _naming(path):
        fields = kind.check_kwargs(**fields)
        unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(kind)})
        if unknown and kind.__module__.startswith("peft."):  # of a later PEFT
            warnings.warn(
                f"{path} has {', '.join(unknown)}, which this PEFT ({version('peft')}) does not know"
                " and ignores: the adapter may be another one than was trained; update peft",
                QpeftWarning,
                stacklevel=2,
            )
            fields = {name: value for name, value in fields.items() if name not in unknown}
        config = kind.from_peft_type(**fields)
    _check_scale(config, path)
    return config


def _check_scale(config: Any, path: Path) -> None:
    """Raise CheckpointError if a field that scales the adapter was edited in the file `path`."""
    saved = getattr(config, "saved_scale", None)
    if saved is None:  # of a release before 0.3, or without such fields
        return
    fields = config.scale() or {}
    names = saved if isinstance(saved, dict) else ()
    # release 0.3 saved fewer fields of a host, and none without a value
    present = {k: v for k, v in fields.items() if k in names or (k in _SCALE and v is not None)}
    if present != saved:
        raise CheckpointError(
            f"{path} has {present}, and the adapter was saved with {reprlib.repr(saved)}; restore it"
            " (if the change is intended, set saved_scale to null)"
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Within: an invalid config is a CheckpointError with the path of its file."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # a field of another type can fail anywhere in PEFT
        raise CheckpointError(f"{path}: {error or type(error).__name__}; restore it") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within: what safetensors or the system raises for the file `path`, which can change after any
    check, is a CheckpointError.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut off ({error}); copy it again or use an earlier checkpoint"
        ) from error


def check_weights(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the folder's weights have another SHA-256 than the one in `record`,
    or lack tensors of a resized vocabulary that it names; each if it is there.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        return
    expected = record.get("weights_sha256")
    if expected is not None and file_hash(weights) != expected:
        raise CheckpointError(
            f"{weights} is not the file that was saved: its SHA-256 differs, so it is damaged or"
            " was replaced; copy the folder again (if the change is intended, set weights_sha256"
            " to null in the JSON file that contains it)"
        )
    # rows that nobody else has: a base that is resized again draws others
    names = record.get("embeddings") or []
    missing = [*map(str, names)] if isinstance(names, list) else [str(names)]
    if missing:
        with reading(weights), safe_open(weights, framework="pt") as file:
            missing = sorted({*missing} - {*file.keys()})
    if missing:
        raise CheckpointError(
            f"{weights} lacks {', '.join(missing)}, which was saved with the adapter because the"
            " vocabulary was resized; restore it (if the change is intended, set embeddings to null"
            " in the JSON file that contains it)"
        )


@dataclass
class OwnTunerConfig(AdapterConfig):
    """The config of an `OwnTuner`, with PEFT's fields that choose modules."""

    target_modules: Collection[str] | str | None = option(
        None,
        "Modules to adapt: ends of names, a pattern of whole names, or all-linear. Default: the"
        " method's choice.",
    )
    exclude_modules: Collection[str] | str | None = option(
        None, "Modules to exclude from target_modules."
    )
    modules_to_save: list[str] | None = option(
        None, "Modules that are trained in full, in addition to the adapter."
    )
    layers_to_transform: list[int] | int | None = option(
        None, "Numbers of the layers to adapt. Default: all."
    )
    layers_pattern: list[str] | str | None = option(
        None,
        "Names of the lists of layers that layers_to_transform counts, such as h. Default: any.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        warn_without_effect(self, type(self))
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern has no effect without layers_to_transform")


@dataclass
class GeneratedConfig(AdapterConfig, GeneratorConfig):
    """The config of a generated adapter: the generator's, with the table of the tensors that it
    generates.

    For a generated LoRA it is mixed in before `LoraConfig`. A subclass defines `make`.

    Raises CheckpointError for another version of the compact format.
    """

    format_version: int = option(FORMAT_VERSION, "Version of the compact format.")
    generated: list[Any] | None = option(
        None, "Name and shape of each generated tensor in order; filled in when bound."
    )
    saved_scale: dict[str, Any] | None = option(
        None, "The fields that scale the adapter; filled in when saved.", filled_in=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"this adapter has format version {reprlib.repr(self.format_version)}, this qpeft"
                f" reads {FORMAT_VERSION}; load it with the release of qpeft that wrote it"
            )

    def scale(self) -> dict[str, Any] | None:
        """The fields on which the adapter's effect depends, but no tensor: those that scale it, or
        of a host nearly all; None without any.
        """
        host = getattr(self, "host", None) or {}
        if host:  # None, too, as in a field without a value that gets one
            return as_json(
                {k: v for k, v in host.items() if k not in _NO_SCALE and "dropout" not in k}
            )
        given = {name: getattr(self, name, None) for name in _SCALE}
        return as_json({name: value for name, value in given.items() if value is not None}) or None

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's, with what the folder is checked for when it is loaded."""
        self.saved_scale = self.scale()
        super().save_pretrained(save_directory, **kwargs)

    def fill_from_frame_file(self, base: nn.Module) -> None:
        """Fill in what a file that the config names determines for `base`; called before the
        adapter is built.
        """

    @property
    def drawn_init(self) -> bool | str:
        """The initial values w0: `init_lora_weights`, or "zero" for A = B = 0, where the
        generator's are not zero.
        """
        return getattr(self, "init_lora_weights", "zero")

    def to_stock(self) -> PeftConfig:
        """The stock config of the generated adapter, for the exported folder: a LoraConfig."""
        names = {f.name for f in dataclasses.fields(LoraConfig) if f.init} - {
            "peft_type",
            "runtime_config",
        }
        return LoraConfig(**{name: copy.deepcopy(getattr(self, name)) for name in names})


def in_vector_order(slots: Sequence[Slot], config: Any) -> list[Slot]:
    """The tensors of an adapter in the order of the flat vector, which a checkpoint that is being
    loaded records.
    """
    saved: list[Any] | None = config.generated
    if saved is None:
        return config.order(slots)
    here = {(slot.label, *slot.shape): slot for slot in slots}
    try:
        ordered = [here.pop((label, *shape)) for label, shape in saved]
    except (TypeError, ValueError, KeyError):
        ordered = []
    if here or not ordered:
        unmatched = next(
            (f"{slot.label} with shape {list(slot.shape)}" for slot in here.values()),
            "none of them",
        )
        raise CheckpointError(
            f"its base model is {config.base_model_name_or_path or 'unnamed'!r}, and it generates"
            f" other tensors than this model has, which has {unmatched}: load it on its own base model,"
            " or restore its adapter_config.json if it was edited"
        )
    return ordered
