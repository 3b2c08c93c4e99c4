"""What the laboratory adds to the records of PEFT's methods: checks of a run, and what must be read
from training data before an adapter is made.

Everything else about a method is in its `qpeft.methods.Method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qpeft.errors import ConfigError
from qpeft.methods import records, register
from qpeft.methods.method import Method, Trains

# the key of the base model as it is
UNTRAINED = next(record.key for record in records() if record.trains is Trains.NOTHING)


@dataclass(frozen=True, kw_only=True)
class LabRecord:
    """Of one method; functions may be given as "module:Name", for `qpeft.methods.method.imported`."""

    check: Callable[[Any], None] | str | None = (
        None  # (settings) raises ConfigError for an unsupported run
    )
    # (base, config, batches) completes the config, or prepares the base, from training data, which
    # batches() returns; it returns a function to call with the model before the first step, or None
    calibrate: Callable[[Any, Any, Any], Callable[[Any], None] | None] | str | None = None


def lab_record(method: Method) -> LabRecord:
    """What the laboratory adds to this method; nothing for most, and for a method of a user."""
    return _RECORDS.get(method.key, _NONE)


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
    "trainable_tokens": LabRecord(
        check=_refuse_images, calibrate="qpeft_lab.training.initial:choose_tokens"
    ),
    "lora": _FROM_DATA,
    "dora": _FROM_DATA,
    "prefix": LabRecord(check=_check_prefix),
    "prompt": LabRecord(check=_refuse_images),
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
