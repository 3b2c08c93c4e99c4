"""What the laboratory adds to the methods of the library: trained tokens, which are chosen from data,
and which runs a method does not support.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpeft.errors import ConfigError
from qpeft.methods import records, register
from qpeft.methods.method import Method, Trains

if TYPE_CHECKING:
    from qpeft_lab.settings import RunSettings

# the key of the base model as it is
UNTRAINED = next(record.key for record in records() if record.trains is Trains.NOTHING)


def check_run(record: Method, settings: RunSettings) -> None:
    """Raise ConfigError for a run that the method does not support."""
    if settings.gradient_checkpointing and not record.takes_gradient_checkpointing:
        raise ConfigError(
            f"method {record.key} cannot be combined with gradient_checkpointing (a limit of PEFT)"
        )
    if settings.task == "image-classification" and record.needs_text:
        raise ConfigError(
            f"{record.key} trains tokens of a text, which images do not have; use another method"
        )
    if settings.is_language_model and record.trains is Trains.HEAD:
        raise ConfigError(
            f"method {record.key} trains only a new classification head, which task causal-lm lacks;"
            " choose task text-classification or image-classification, or another method"
        )
    is_rounded = settings.dtype != "float32" or settings.load_in_4bit
    if is_rounded and record.trains is Trains.MODEL:
        raise ConfigError(
            f"method {record.key} trains the parameters of the base, and fewer bits than those of"
            " float32 would round its steps away; use dtype float32, or an adapter method"
        )


register(
    Method(
        key="trainable_tokens",
        title="trainable tokens",
        config="qpeft_lab.training.initial:TokensConfig",
        learning_rate=0.04,
        needs_text=True,
    )
)
