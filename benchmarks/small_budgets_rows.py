"""The methods of `small_budgets.py`: each a PEFT config, and its three learning rates.

The learning rates differ by a factor of about three, around the best ones of an earlier pilot. Quantum-PEFT folds its
own factors into one learning rate: 2e-3 moves an angle by 0.1 per step, lambda (times lora_alpha) by 0.064, a norm gain
by 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import peft
from peft import PeftConfig

import qpeft

CIRCUIT_RATES = (6e-4, 2e-3, 6e-3)
CORE_RATES = (2e-4, 6e-4, 2e-3)  # a parameter of a core moves like lambda


class Names(NamedTuple):
    """An architecture's names of the query and value maps, the last norm, and all norms."""

    query_value: list[str]
    final_norm: list[str]
    norms: list[str]


NAMES = {
    "llama": Names(["q_proj", "v_proj"], ["model.norm"], ["input_layernorm", "post_attention_layernorm", "model.norm"]),
    "gpt2": Names(["c_attn"], ["ln_f"], ["ln_1", "ln_2", "ln_f"]),  # c_attn contains the key map as well
}


@dataclass(frozen=True)
class Row:
    """`config(seed)` is the adapter; None trains every weight, or nothing without learning rates."""

    config: Callable[[int], PeftConfig] | None
    rates: tuple[float, ...]
    main: bool = False


def build_rows(model_type: str) -> dict[str, Row]:
    names = NAMES[model_type]
    return {
        "base": Row(None, (), main=True),
        "full": Row(None, (5e-4, 1e-3, 2e-3), main=True),
        **_classical(names),
        **_circuits(names),
        **_controls(names),
    }


def _classical(names: Names) -> dict[str, Row]:
    seeded = {"vera": "projection_prng_key", "uni": "proj_seed", "tiny": "projection_seed"}
    uni = {"target_modules": "all-linear", "r": 4}
    return {
        "lora-r1": _stock("LoraConfig", (6e-3, 2e-2, 6e-2), r=1, lora_alpha=1, main=True),
        "lora-r1-qv": _stock("LoraConfig", (6e-3, 2e-2, 6e-2), r=1, lora_alpha=1, target_modules=names.query_value),
        "vera-qv-r16": _stock(
            "VeraConfig", (1e-2, 3e-2, 1e-1), seeded["vera"], r=16, target_modules=names.query_value, main=True
        ),
        "uni-lora-370": _stock("UniLoraConfig", (3e-2, 1e-1, 3e-1), seeded["uni"], theta_d_length=370, **uni),
        "uni-lora-1300": _stock(
            "UniLoraConfig", (3e-2, 1e-1, 3e-1), seeded["uni"], theta_d_length=1300, **uni, main=True
        ),
        "uni-lora-4000": _stock("UniLoraConfig", (2e-2, 6e-2, 2e-1), seeded["uni"], theta_d_length=4000, **uni),
        "tiny-lora-u9": _stock("TinyLoraConfig", (1e-2, 3e-2, 1e-1), seeded["tiny"], r=8, u=9),
        "gains-final": _stock("LNTuningConfig", (3e-2, 1e-1, 3e-1), target_modules=names.final_norm, main=True),
        "gains-all": _stock("LNTuningConfig", (2e-2, 6e-2, 2e-1), target_modules=names.norms, main=True),
    }


def _circuits(names: Names) -> dict[str, Row]:
    framed = {"frame": "gradient", "n_layers": 1}
    typed = {**framed, "share": "type"}
    return {
        "plain-L1-r8": _ours(n_layers=1, r=8, main=True),
        "plain-L2-r8": _ours(n_layers=2, r=8, main=True),
        "plain-L4-r32": _ours(n_layers=4, r=32, main=True),
        "start-L1-r8": _ours(n_layers=1, r=8, start="gradient"),
        "shared-L1-r4": _ours(n_layers=1, r=4, share="type", main=True),
        "shared-L1-r16": _ours(n_layers=1, r=16, share="type"),
        "framed-type-R4-r2": _ours(**typed, frame_rank=4, r=2, main=True),
        "framed-type-R32-r5": _ours(**typed, frame_rank=32, r=5, main=True),
        "framed-type-R32-r13": _ours(**typed, frame_rank=32, r=13),
        "framed-own-R16-r16": _ours(**framed, frame_rank=16, r=16, main=True),
        "framed-own-R32-r32-L2": _ours(frame="gradient", n_layers=2, frame_rank=32, r=32),
        "framed-type-R4-r2+final": _ours(**typed, frame_rank=4, r=2, modules_to_save=names.final_norm),
        "framed-type-R32-r3+final": _ours(**typed, frame_rank=32, r=3, modules_to_save=names.final_norm, main=True),
        "framed-type-R32-r13+gains": _ours(**typed, frame_rank=32, r=13, modules_to_save=names.norms, main=True),
    }


def _controls(names: Names) -> dict[str, Row]:
    """Classical controls of the circuits, with equal or nearly equal numbers of parameters."""
    # scales other than the defaults keep all parameters near their best learning rates at one common one
    core = {"family": "core", "frame": "gradient"}
    typed = {"frame": "gradient", "share": "type", "n_layers": 1}
    return {
        "plain-L1-r8-no-CZ": _ours(n_layers=1, r=8, entangler="none", main=True),
        "plain-L1-r8-signs": _ours(n_layers=1, r=8, entangler="signs", main=True),
        "frozen-L1-r32": _ours((3e-4, 1e-3, 3e-3), n_layers=1, r=32, freeze_angles=True),
        "kronecker-r1": _ours(family="kronecker", r=1, main=True),
        "kronecker-r2": _ours(family="kronecker", r=2),
        "lie-r4": _ours(family="lie", lie_rank=1, r=4),
        "core-R2": _ours(CORE_RATES, **core, frame_rank=2, r=2),
        "core-R3": _ours(CORE_RATES, **core, frame_rank=3, r=3, main=True),
        "core-R6": _ours(CORE_RATES, **core, frame_rank=6, r=6, main=True),
        "core-R6-random": _ours(CORE_RATES, family="core", frame="random", frame_rank=6, r=6),
        "core-R3+final": _ours(
            CORE_RATES, **core, frame_rank=3, r=3, modules_to_save=names.final_norm, gain_scale=150, main=True
        ),
        "framed-type-R32-r5-signs": _ours(**typed, frame_rank=32, r=5, entangler="signs"),
        "framed-type-R32-r3+final-signs": _ours(
            **typed, frame_rank=32, r=3, entangler="signs", modules_to_save=names.final_norm
        ),
        "framed-own-R16-r16-signs": _ours(frame="gradient", n_layers=1, frame_rank=16, r=16, entangler="signs"),
        "framed-type-R8-r3-lie": _ours(
            family="lie", lie_rank=3, angle_scale=50, frame="gradient", share="type", frame_rank=8, r=3, main=True
        ),
    }


def _ours(rates: tuple[float, ...] = CIRCUIT_RATES, main: bool = False, **settings: Any) -> Row:
    fixed = {"lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return Row(lambda seed: qpeft.QuantumPeftConfig(**{**fixed, **settings}, seed=seed), rates, main)


def _stock(
    config: str, rates: tuple[float, ...], seed_field: str | None = None, main: bool = False, **settings: Any
) -> Row:
    fixed = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}

    def build(seed: int) -> PeftConfig:
        seeded = {seed_field: seed} if seed_field else {}
        return getattr(peft, config)(**{**fixed, **settings, **seeded})

    return Row(build, rates, main)
