"""The base classes of PEFT configs of generated adapters: they record the initial values and the base."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from peft import LoraConfig, PeftConfig

from qpeft.checks import option
from qpeft.core import model_card
from qpeft.core.binding import Slot
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import CheckpointError, ConfigError, setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qpeft.core.generator import Generator
    from qpeft.core.seeded_init import SeededInit

FORMAT_VERSION = 2  # 1: of qpeft 0.1; 2: a frame file, or 16 bits, bits of lambda
Held = TypeVar("Held")


class MethodName(str):
    """A PEFT type from outside PEFT: a plain string for JSON and dictionaries, with the attributes of PEFT's enum."""

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
    """A copy of the config, so that the user's can be used again, with the heads that PEFT trains."""
    copied = copy.copy(config)
    heads = _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())
    if heads:
        copied.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *heads]))
    return copied


def refuse_lora_options(config: Any, method: str, allowed: Sequence[str] = (), more: Sequence[str] = ()) -> None:
    """Raise ConfigError if `config` sets a variant of LoRA, apart from those `allowed`, or one of `more` options."""
    variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    for name in (*variants, "target_parameters", "use_qalora", "layer_replication", *more):
        if name not in allowed and getattr(config, name, None):
            raise ConfigError(f"{method} cannot be combined with LoRA's {name}; leave it unset")


@dataclass
class OwnTunerConfig(SealedConfig):
    """The config of an `OwnTuner`, with PEFT's fields that choose modules; a subclass defines `target_modules`."""

    exclude_modules: Collection[str] | str | None = option(None, "Modules to exclude from target_modules.")
    modules_to_save: list[str] | None = option(None, "Modules that are trained in full, in addition to the adapter.")
    layers_to_transform: list[int] | int | None = option(None, "Numbers of the layers to adapt. Default: all.")
    layers_pattern: list[str] | str | None = option(
        None, "Names of the lists of layers that layers_to_transform counts, such as h. Default: any."
    )

    def check_targets(self, example: str) -> None:
        """Raise ConfigError if the fields that choose modules contradict each other, as LoraConfig does."""
        targets: Any = getattr(self, "target_modules", None)
        if targets is not None and not targets:
            raise ConfigError(
                f"{setting('target_modules')} is empty; name modules such as {example}, or leave it unset"
            )
        if isinstance(targets, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform needs a list of names in target_modules, not one text")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern needs layers_to_transform")


@dataclass
class GeneratedConfig(SealedConfig):
    """A PEFT config that records the initial values of its adapter and the tensors of its base model."""

    format_version: int = option(1, "Version of the compact format.")
    start_hash: str | None = option(None, "SHA-256 of the integers drawn for the initial values; filled in when bound.")
    generated: list[Any] | None = option(
        None, "Name and shape of each generated tensor in order; filled in when bound."
    )

    tensor_prefix: ClassVar[str] = "base_model.qpeft_generator."  # of the generator's tensors in a compact checkpoint

    def to_generator(self) -> Any:
        """The settings of the generator: this config, or those of an attached generator."""
        return self

    def without_base(self, slots: Sequence[Slot], init: SeededInit, stored: Mapping[str, Tensor]) -> Generator | None:
        """The untrained generator, made without the base model; None if it depends on more of it than `slots`.

        Args:
            slots: Names and shapes of the generated tensors, in order.
            init: Draws the initial values.
            stored: The generator's tensors in the compact checkpoint.
        """
        return None

    def count_without_base(self, slots: Sequence[Slot]) -> int | None:
        """The generator's trainable parameters, where `without_base` cannot make it; None if they are unknown."""
        return None

    def read_files(self, base: nn.Module) -> None:
        """Fill in what a file that the config names determines; called before the adapter is built or counted.

        Raises CheckpointError if the file is for another model than `base`.
        """

    def check_format(self) -> None:
        """Raise CheckpointError if a newer qpeft wrote this config."""
        if not isinstance(self.format_version, int) or self.format_version > FORMAT_VERSION:
            raise CheckpointError(
                f"this adapter has format version {self.format_version!r}, this qpeft reads up to {FORMAT_VERSION}; "
                "install a newer qpeft"
            )

    def to_stock(self) -> PeftConfig:
        """The stock config of the generated adapter, for the exported folder."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """The "method" with its paper and the settings that matter, for model cards and qpeft.json."""
        raise NotImplementedError

    @property
    def has_stock_form(self) -> bool:
        """Whether stock PEFT has the generated adapter."""
        return True

    def card(self) -> model_card.Card:
        settings = self.description()
        method, host = settings.pop("method"), settings.pop("host", "LoRA")
        sizes = [math.prod(shape) for _, shape in self.generated or []]
        return model_card.Card(
            "Compact adapter",
            tag=host,
            what=f"This folder contains the *generator* of a stock adapter ({host}), not the adapter itself.\n"
            f"The generator ({method}) computes {sum(sizes):,} adapter parameters in {len(sizes)} tensors.",
            settings=settings,
            can_export=self.has_stock_form,
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

    @property
    def drawn_init(self) -> bool | str:
        """The initial values w0: `init_lora_weights`, or "zero" for A = B = 0, where the generator's are not zero."""
        return self.init_lora_weights  # type: ignore[return-value]

    def refuse_lora_options(self, method: str, allowed: Sequence[str] = (), more: Sequence[str] = ()) -> None:
        """Raise ConfigError for LoRA's variants, apart from those `allowed`, and `more` options, if they are set."""
        refuse_lora_options(self, method, allowed, more)

    def to_stock(self) -> LoraConfig:
        """The LoraConfig of the generated adapter, for the exported folder."""
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
