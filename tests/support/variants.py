"""Every method in its main variants, with sizes for the tiny models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn

import qpeft

QPA = {"r": 2, "n_layers": 3, "target_modules": "all-linear"}
NETWORK = {**QPA, "hidden": (6, 5), "chunk_size": 16}
QCHFT = {"ansatz": "all_pairs", "readout": "last_r", "n_layers": 2}
QUANTUM_PEFT = {"r": 3, "n_layers": 1, "target_modules": "all-linear"}
SORA = {"r": 4, "target_modules": "all-linear", "shrink_budget": 0}
BOTTLENECK = {"bottleneck_size": 4}
NO_STOCK_FORM: dict[str, Any] = {"exports": False, "merges": False}
# for hosts of few parameters
SMALL_GENERATOR = qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(6, 5), n_layers=3)


@dataclass(frozen=True)
class Variant:
    """A config, whether `qpeft.attach` adds a generator, and the differences between methods."""

    method: str
    config: Callable[..., peft.PeftConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    attached: bool = False
    generator: qpeft.QPAGeneratorConfig = field(
        default_factory=lambda: qpeft.QPAGeneratorConfig(n_layers=3)
    )
    dropout: str | None = None  # the name of the config's field
    exports: bool = True
    merges: bool = True
    starts_at_base: bool = True
    exact_gradient: bool = True
    is_random: bool = True  # whether initial values are drawn
    stays_float32: bool = True  # also in a model that was cast to half precision
    lr: float = 2e-3  # at which five steps of AdamW lower the loss

    def make_config(self, **changes: Any) -> peft.PeftConfig:
        settings = {"task_type": "CAUSAL_LM", **copy.deepcopy(self.settings), **changes}
        return self.config(**of_family(settings))

    def adapt(self, base: nn.Module, adapter_name: str = "default", **changes: Any) -> Any:
        """`base` with the untrained adapter, in evaluation mode."""
        model = get_peft_model(base, self.make_config(**changes), adapter_name)  # type: ignore[arg-type]
        return (
            qpeft.attach(model, copy.deepcopy(self.generator)) if self.attached else model
        ).eval()


def of_family(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of Quantum-PEFT without `n_layers` if their family has no layers."""
    if settings.get("family", "pauli") == "pauli":
        return settings
    return {name: value for name, value in settings.items() if name != "n_layers"}


def trained(model: Any) -> list[Any]:
    """The parameters that training changes."""
    return [p for p in model.parameters() if p.requires_grad]


def move(model: Any, seed: int = 1, spread: float = 0.05) -> Any:
    """Add seeded noise to all trainable parameters, as training does; the first SoRA gates become
    zero.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float32)
                parameter.add_(spread * noise.to(parameter.dtype))
            if name.endswith(".gates"):
                parameter[::4] = 0.0
    return model.eval()


def changed(variant: Variant, **settings: Any) -> Variant:
    return replace(variant, settings={**variant.settings, **settings})


quantum_peft = partial(Variant, "quantum_peft", qpeft.QuantumPeftConfig)
attached = partial(Variant, "attach", attached=True)


def on_linear(
    method: str, config: Callable[..., peft.PeftConfig], settings: dict[str, Any], **facts: Any
) -> Variant:
    """A method of adapters around every linear map."""
    return Variant(method, config, {"target_modules": "all-linear", **settings}, **facts)


cua = partial(on_linear, "cua", qpeft.CUAConfig, is_random=False)
quic = partial(on_linear, "quic", qpeft.QuICConfig, is_random=False)
quanta = partial(on_linear, "quanta", qpeft.QuanTAConfig, exports=False)

RAW = Variant("qpa", qpeft.QPAConfig, QPA, dropout="lora_dropout", starts_at_base=False, lr=5e-4)
WITH_DORA = replace(changed(RAW, use_dora=True), dropout=None, exact_gradient=False, lr=2e-3)
MAGNITUDE = {"readout": "magnitude"}  # not linear, and its gradient has kinks
OUTPUT_PYRAMID = {"n_blocks": 2, "side": "output", "base": "pyramid"}
PREFIX = {"num_virtual_tokens": 4}

TUNER_VARIANTS = {  # which get_peft_model alone makes
    "qpa": RAW,
    "qpa, 2 generators": changed(RAW, n_generators=2, features=4),
    "qpa, square": changed(RAW, ansatz="square", features=4, n_layers=2),
    "qpa with dora": WITH_DORA,
    "qpa with a network": Variant("qpa", qpeft.QPAConfig, NETWORK, dropout="lora_dropout"),
    "qpa without a circuit": Variant("qpa", qpeft.QPAConfig, {**NETWORK, "feature_source": "none"}),
    "quantum_peft": quantum_peft(QUANTUM_PEFT, dropout="lora_dropout"),
    "quantum_peft, lie, shared": quantum_peft({**QUANTUM_PEFT, "family": "lie", "share": "type"}),
    "quantum_peft in frames": quantum_peft({**QUANTUM_PEFT, "frame": "random", "frame_rank": 8}),
    "qaa": Variant("qaa", qpeft.QAAConfig, **NO_STOCK_FORM),
    "qaa, qchft": Variant("qaa", qpeft.QAAConfig, QCHFT, **NO_STOCK_FORM),
    "sora": Variant("sora", qpeft.SoRAConfig, SORA, dropout="lora_dropout"),
    "bottleneck": Variant(
        "bottleneck", qpeft.BottleneckConfig, BOTTLENECK, **NO_STOCK_FORM, stays_float32=False
    ),
    "cua": cua({}),
    "cua, output": cua({"side": "output"}, exports=False),
    "cua, magnitude": cua(MAGNITUDE, exports=False, merges=False, exact_gradient=False),
    "quic, 1": quic({"n_blocks": 1}),
    "quic, 2, output, pyramid": quic(OUTPUT_PYRAMID, exports=False),
    "quic, 1, 3, butterfly": quic({"n_blocks": 1, "order": 3, "base": "butterfly"}),
    "quic, 1, random": quic({"n_blocks": 1, "multiplier": "random"}, is_random=True),
    "quanta, gates": quanta({"form": "gates"}),
    "quanta, mpo": quanta({"form": "mpo"}),
    "quanta, kron": quanta({"form": "kron"}),
}
ATTACHED_VARIANTS = {
    "attached to lora": attached(
        LoraConfig, {"r": 2, "target_modules": "all-linear"}, dropout="lora_dropout"
    ),
    "attached to ia3": attached(IA3Config, generator=SMALL_GENERATOR),
    "attached to a bottleneck": attached(qpeft.BottleneckConfig, BOTTLENECK, **NO_STOCK_FORM),
    "attached to qaa": attached(qpeft.QAAConfig, **NO_STOCK_FORM),
    "attached to a prefix": attached(PrefixTuningConfig, PREFIX, merges=False),
}
VARIANTS = TUNER_VARIANTS | ATTACHED_VARIANTS
TUNERS = list(TUNER_VARIANTS)
RANDOM = [name for name, variant in TUNER_VARIANTS.items() if variant.is_random]

KINDS = {  # a variant of each kind of tuner and of host; the others differ in what they compute
    "qpa",
    "qpa with dora",
    "qpa with a network",
    "quantum_peft",
    "quantum_peft in frames",
    "qaa",
    "sora",
    "bottleneck",
    "cua",
    "cua, magnitude",
    "quic, 1",
    "quanta, gates",
    "attached to lora",
    "attached to a bottleneck",
    "attached to a prefix",
}


def kinds_first(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test that does not depend on what is computed; those of no new
    kind are long.
    """
    return [name if name in KINDS else pytest.param(name, marks=pytest.mark.long) for name in names]
