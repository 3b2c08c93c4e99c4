"""PEFT's own methods, full fine-tuning, and the unadapted base model."""

from __future__ import annotations

from typing import Any

from qpeft.errors import ConfigError
from qpeft.methods.method import Method, Trains

_ALL_LINEAR = {"target_modules": "all-linear"}


def _refuse_images(settings: Any) -> None:
    if settings.task == "image-classification":
        raise ConfigError(
            f"{settings.adapter.key} adds virtual tokens to a text, which images do not have; use another method"
        )


def _check_prefix(settings: Any) -> None:
    if settings.gradient_checkpointing:
        raise ConfigError("method prefix cannot be combined with gradient_checkpointing (a limit of PEFT)")
    _refuse_images(settings)


def _check_head(settings: Any) -> None:
    if settings.task == "causal-lm":
        raise ConfigError(
            "method head trains only a new classification head, which task causal-lm lacks; choose task "
            "text-classification or image-classification, or another method"
        )


def _check_full(settings: Any) -> None:
    if settings.dtype != "float32":
        raise ConfigError(
            f"method full trains the parameters of the base, and {settings.dtype} would round its steps away; "
            "use dtype float32, or an adapter method"
        )


METHODS = (
    Method(key="lora", title="LoRA", config="peft:LoraConfig", learning_rate=2e-4, defaults=_ALL_LINEAR, is_host=True),
    Method(
        key="dora",
        title="DoRA",
        config="peft:LoraConfig",
        defaults={**_ALL_LINEAR, "use_dora": True},
        is_host=True,
    ),
    Method(
        key="pissa",
        title="PiSSA",
        config="peft:LoraConfig",
        defaults={**_ALL_LINEAR, "init_lora_weights": "pissa"},
        is_host=True,
    ),
    Method(key="ia3", title="IA3", config="peft:IA3Config", learning_rate=5e-3, is_host=True),  # PEFT finds its targets
    Method(
        key="vera",
        title="VeRA",
        config="peft:VeraConfig",
        learning_rate=4e-3,
        defaults=_ALL_LINEAR,
        is_host=True,
    ),
    Method(key="loha", title="LoHa", config="peft:LoHaConfig", defaults=_ALL_LINEAR, is_host=True),
    Method(
        key="ln_tuning",
        title="layer norm tuning",
        config="peft:LNTuningConfig",
        learning_rate=5e-3,
        is_host=True,
    ),
    Method(
        key="prefix",
        title="prefix tuning",
        config="peft:PrefixTuningConfig",
        learning_rate=5e-3,
        defaults={"num_virtual_tokens": 10},
        is_host=True,
        check=_check_prefix,
        report_note="A prefix changes the base's output even if it is zero, so prefix tuning has another initial loss "
        "than the other methods.",
    ),
    Method(
        key="prompt",
        title="prompt tuning",
        config="peft:PromptTuningConfig",
        learning_rate=5e-3,
        defaults={"num_virtual_tokens": 10},
        is_host=True,
        check=_refuse_images,
    ),
    Method(
        key="uni_lora",
        title="Uni-LoRA",
        config="peft:UniLoraConfig",
        learning_rate=4e-3,
        defaults=_ALL_LINEAR,
    ),
    Method(
        key="tiny_lora",
        title="TinyLoRA",
        config="peft:TinyLoraConfig",
        learning_rate=4e-3,
        defaults=_ALL_LINEAR,
    ),
    Method(
        key="fourierft",
        title="FourierFT",
        config="peft:FourierFTConfig",
        learning_rate=4e-3,
        defaults=_ALL_LINEAR,
    ),
    Method(
        key="head",
        title="classification head alone",
        config="peft:LoraConfig",
        trains=Trains.HEAD,
        defaults={"target_modules": "dummy-target-modules"},  # PEFT's name for no module
        check=_check_head,
    ),
    Method(key="full", title="full fine-tuning", trains=Trains.MODEL, learning_rate=2e-5, check=_check_full),
    Method(key="none", title="the base model", trains=Trains.NOTHING),
)
