"""PEFT's own methods, full fine-tuning, and the unadapted base model."""

from __future__ import annotations

from typing import Any

from qpeft.errors import ConfigError, setting
from qpeft.methods.method import Method, Trains


def _refuse_images(settings: Any) -> None:
    if settings.task == "image-classification":
        raise ConfigError(
            f"{settings.adapter.key} adds virtual tokens to a text, which images do not have; use another method"
        )


def _check_prefix(settings: Any) -> None:
    if settings.gradient_checkpointing:
        raise ConfigError(
            f"method prefix cannot be combined with {setting('gradient_checkpointing')} (a limit of PEFT)"
        )
    _refuse_images(settings)


def _check_head(settings: Any) -> None:
    if settings.is_language_model:
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


_OF_RECORDS = ("check", "report_note", "calibrate", "fit", "seed_field", "seed_step")


def _peft(key: str, title: str, config: str, learning_rate: float, *, is_host: bool = True, **more: Any) -> Method:
    """A method of PEFT with its config class; `more` are its defaults here, by default those of `all-linear`."""
    fields = {name: more.pop(name) for name in _OF_RECORDS if name in more}
    defaults = more.pop("defaults", {"target_modules": "all-linear", **more})
    return Method(
        key=key,
        title=title,
        config=f"peft:{config}",
        learning_rate=learning_rate,
        defaults=defaults,
        is_host=is_host,
        **fields,
    )


_TOKENS = {"num_virtual_tokens": 10}
_FROM_DATA: dict[str, Any] = {
    "calibrate": "qpeft.methods.gradient_start:gradients_for",
    "fit": "qpeft.methods.gradient_start:data_start_for",
}
# Learning rates are those that our studies chose; docs/learning_rates.md has their table. PiSSA, LoHa and prompt tuning
# are in no study and have the usual values of PEFT's examples.
METHODS = (
    _peft("lora", "LoRA", "LoraConfig", 1e-2, **_FROM_DATA),
    _peft("dora", "DoRA", "LoraConfig", 9e-3, use_dora=True, **_FROM_DATA),
    _peft("pissa", "PiSSA", "LoraConfig", 2e-4, init_lora_weights="pissa"),
    _peft("ia3", "IA3", "IA3Config", 0.1, defaults={}),  # PEFT knows its targets
    _peft("vera", "VeRA", "VeraConfig", 0.1, seed_field="projection_prng_key"),
    _peft("loha", "LoHa", "LoHaConfig", 2e-4),
    _peft("ln_tuning", "layer norm tuning", "LNTuningConfig", 0.08, defaults={}),
    _peft(
        "prefix",
        "prefix tuning",
        "PrefixTuningConfig",
        0.3,
        defaults=_TOKENS,
        check=_check_prefix,
        report_note="A prefix changes the base's output even if it is zero, so prefix tuning has another initial loss "
        "than the other methods.",
    ),
    _peft("prompt", "prompt tuning", "PromptTuningConfig", 5e-3, defaults=_TOKENS, check=_refuse_images),
    _peft("uni_lora", "Uni-LoRA", "UniLoraConfig", 0.08, is_host=False, seed_field="proj_seed"),
    _peft(
        "tiny_lora",
        "TinyLoRA",
        "TinyLoraConfig",
        0.02,
        is_host=False,
        seed_field="projection_seed",
        seed_step=100_000,  # PEFT adds the index of the module: with 1, seeds would share all but a few projections
    ),
    _peft("fourierft", "FourierFT", "FourierFTConfig", 0.06, is_host=False, seed_field="random_loc_seed"),
    Method(
        key="head",
        title="classification head alone",
        config="peft:LoraConfig",
        trains=Trains.HEAD,
        learning_rate=0.05,  # the only one that a study used
        defaults={"target_modules": "dummy-target-modules"},  # PEFT's name for no module
        check=_check_head,
    ),
    Method(key="full", title="full fine-tuning", trains=Trains.MODEL, learning_rate=2e-3, check=_check_full),
    Method(key="none", title="the base model", trains=Trains.NOTHING),
)
