"""What the laboratory adds to the records of methods: checks of a run, words of reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qpeft.errors import ConfigError
from qpeft.methods import register
from qpeft.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class LabRecord:
    """Of one method; functions may be given as "module:Name", for `qpeft.methods.method.imported`."""

    own_hosts: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # hosts that the config itself generates
    classical_values: Mapping[str, Sequence[Any]] = field(
        default_factory=dict
    )  # for which there is no circuit
    revision: int = (
        1  # raised when defaults change: rows of studies with other defaults do not count
    )
    # the seed of a run is multiplied by it for a `seed_field` that also uses the numbers after it
    seed_step: int = 1
    check: Callable[[Any], None] | str | None = (
        None  # (settings) raises ConfigError for an unsupported run
    )
    # (base, config, batches) completes the config, or prepares the base, from training data, which
    # batches() returns; it returns a function to call with the model before the first step, or None
    calibrate: Callable[[Any, Any, Any], Callable[[Any], None] | None] | str | None = None
    uses_param_groups: bool = False  # whether the optimizer needs `qpeft.param_groups`


def lab_record(method: Method) -> LabRecord:
    """What the laboratory adds to this method; nothing for a method of a user."""
    return _RECORDS.get(method.key, _NONE)


def kind_with(method: Method, settings: Mapping[str, Any]) -> Literal["quantum", "classical"]:
    """The kind of the method; classical for settings without a circuit."""
    without = lab_record(method).classical_values
    return (
        "classical"
        if any(settings.get(name) in values for name, values in without.items())
        else method.kind
    )


def _refuse_images(settings: Any) -> None:
    if settings.task == "image-classification":
        raise ConfigError(
            f"{settings.adapter.key} trains tokens of a text, which images do not have; use another"
            " method"
        )


def _check_prefix(settings: Any) -> None:
    if settings.gradient_checkpointing:
        raise ConfigError(
            "method prefix cannot be combined with gradient_checkpointing (a limit of PEFT)"
        )
    _refuse_images(settings)


def _check_head(settings: Any) -> None:
    if settings.is_language_model:
        raise ConfigError(
            "method head trains only a new classification head, which task causal-lm lacks; choose"
            " task text-classification or image-classification, or another method"
        )


def _check_full(settings: Any) -> None:
    if settings.dtype != "float32" or settings.load_in_4bit:
        raise ConfigError(
            "method full trains the parameters of the base, and fewer bits than those of float32"
            " would round its steps away; use dtype float32, or an adapter method"
        )


_NONE = LabRecord()
_FROM_DATA = LabRecord(calibrate="qpeft_lab.training.initial:attach_gradients")
_RECORDS = {
    "qpa": LabRecord(own_hosts={"lora": {}, "dora": {"use_dora": True}}, revision=2),
    "quantum_peft": LabRecord(classical_values={"family": ("lie", "core")}),
    "sora": LabRecord(uses_param_groups=True),
    "trainable_tokens": LabRecord(
        check=_refuse_images, calibrate="qpeft_lab.training.initial:choose_tokens"
    ),
    "lora": _FROM_DATA,
    "dora": _FROM_DATA,
    "prefix": LabRecord(check=_check_prefix),
    "prompt": LabRecord(check=_refuse_images),
    # PEFT adds the index of the module to the seed: with 1, seeds would share all but a few
    # projections
    "tiny_lora": LabRecord(seed_step=100_000),
    "head": LabRecord(check=_check_head),
    "full": LabRecord(check=_check_full),
}
register(
    Method(
        key="trainable_tokens",
        title="trainable tokens",
        config="qpeft_lab.training.initial:TokensConfig",
        learning_rate=0.04,
    )
)
