"""PEFT's own methods, full fine-tuning, and the unadapted base model."""

from __future__ import annotations

from typing import Any

from qpeft.methods.method import MINILM, SMOLLM2, MeasuredRate, Method, Trains


def _peft(
    key: str,
    title: str,
    config: str,
    learning_rate: float,
    defaults: Any = None,
    *,
    is_host: bool = True,
    **more: Any,
) -> Method:
    """A method of PEFT with its config class; `defaults` are those of its fields here."""
    fields = {
        "config": f"peft:{config}",
        "defaults": _ALL if defaults is None else defaults,
        "is_host": is_host,
    }
    return Method(key=key, title=title, learning_rate=learning_rate, **fields, **more)


_ALL = {"target_modules": "all-linear"}
# the default of PEFT rotates inexactly
_EXACT = {
    **_ALL,
    "oft_block_size": 4,
    "use_cayley_neumann": False,
}
_TOKENS = {"num_virtual_tokens": 10}
# Learning rates are those that our studies chose (docs/comparison.md); LoHa and prompt tuning have
# usual ones.
METHODS = (
    # r=8, E2E, 100 steps of 256 tokens, rates 3.3e-4, 1e-3, 3e-3, 9e-3: losses 1.97, 1.68, 1.61, 1.65
    _peft(
        "lora",
        "LoRA",
        "LoraConfig",
        1e-2,
        measured_rates=(
            MeasuredRate(3e-3, SMOLLM2),
            MeasuredRate(2e-3, MINILM, "text-classification"),
        ),
    ),
    _peft("dora", "DoRA", "LoraConfig", 0.02, {**_ALL, "use_dora": True}),
    _peft("ia3", "IA3", "IA3Config", 0.1, {}),  # PEFT knows its targets
    _peft("vera", "VeRA", "VeraConfig", 0.1, seed_field="projection_prng_key"),
    _peft("loha", "LoHa", "LoHaConfig", 2e-4),
    _peft("ln_tuning", "layer norm tuning", "LNTuningConfig", 0.08, {}),
    _peft(
        "prefix",
        "prefix tuning",
        "PrefixTuningConfig",
        0.3,
        _TOKENS,
        fills_cache=True,
        needs_text=True,
        takes_gradient_checkpointing=False,  # a limit of PEFT
    ),
    _peft("prompt", "prompt tuning", "PromptTuningConfig", 5e-3, _TOKENS, needs_text=True),
    _peft("uni_lora", "Uni-LoRA", "UniLoraConfig", 0.08, is_host=False, seed_field="proj_seed"),
    _peft(
        "tiny_lora",
        "TinyLoRA",
        "TinyLoraConfig",
        0.015,
        is_host=False,
        seed_field="projection_seed",
        # PEFT adds the index of the module to the seed: with 1, seeds would share all but a few
        # projections
        seed_step=100_000,
    ),
    _peft(
        "fourierft",
        "FourierFT",
        "FourierFTConfig",
        0.06,
        is_host=False,
        seed_field="random_loc_seed",
    ),
    _peft("oft", "OFT", "OFTConfig", 0.03, _EXACT, is_host=False, multiplies_weights=True),
    _peft("boft", "BOFT", "BOFTConfig", 0.045, is_host=False, multiplies_weights=True),
    _peft("lokr", "LoKr", "LoKrConfig", 0.07, is_host=False),
    _peft("hra", "HRA", "HRAConfig", 0.08, is_host=False, multiplies_weights=True),
    # any size of groups gives as many parameters; 2 divides every even width
    _peft("road", "RoAd", "RoadConfig", 0.07, {**_ALL, "group_size": 2}, is_host=False),
    Method(
        key="head",
        title="classification head alone",
        config="peft:LoraConfig",
        trains=Trains.HEAD,
        learning_rate=0.05,  # the only one that a study used
        defaults={"target_modules": "dummy-target-modules"},  # PEFT's name for no module
    ),
    Method(key="full", title="full fine-tuning", trains=Trains.MODEL, learning_rate=2e-3),
    Method(key="none", title="the base model", trains=Trains.NOTHING),
)
