"""SoRA (arXiv 2311.11696) as a PEFT tuner: LoRA with a gate on each rank, many of which become exactly zero.

    y = W0 x + b0 + s B (g * (A D(x)))        A (r, d_in), g (r,), B (d_out, r), s = lora_alpha / r, D dropout

After each optimiser step the gates are moved towards zero (`sora_threshold`); a rank whose gate is zero is left out of
the export. PEFT's layers do the rest: a gated adapter is what PEFT calls a variant of LoRA.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn
from torch.nn.functional import linear

from qpeft.checks import is_count, is_positive
from qpeft.core.config import MethodName, check_factors, own_copy
from qpeft.core.generator import FullPrecision
from qpeft.core.generator_state import check_adapter
from qpeft.core.seeded_init import SeededStart
from qpeft.core.targets import check_is_matrix, check_target_modules, spare_new_head
from qpeft.core.tied_weights import check_not_tied
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.sora import card as sora_card
from qpeft.methods.sora.settings import SoRASettings

SORA = MethodName("QPEFT_SORA")
GATE = "sora_gate"
_NOT_GATED = ("target_parameters", "use_qalora", "layer_replication", "lora_bias")


@dataclass
class SoRAConfig(SoRASettings, SealedConfig, LoraConfig):
    """LoRA's settings (r, the rank to begin with, lora_alpha, target_modules, ...) and those of the gates.

    Training needs `qpeft.SoRACallback`. Example::

        model = get_peft_model(base, SoRAConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        Trainer(model=model, callbacks=[SoRACallback()], ...).train()

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that cannot be gated.
    """

    lora_alpha: int = field(default=16, metadata={"help": "The update is multiplied by lora_alpha / r."})
    sora_lambda: float | None = field(
        default=None, metadata={"help": "Threshold over learning rate; filled in when training begins."}
    )
    planned_steps: int | None = field(
        default=None, metadata={"help": "Optimiser steps that sora_lambda was made for; filled in with it."}
    )

    def __post_init__(self) -> None:
        LoraConfig.__post_init__(self)
        SoRASettings.__post_init__(self)
        self.peft_type = SORA  # type: ignore[assignment]
        if not is_count(self.r):
            raise ConfigError(f"r must be a positive integer, got {self.r}")
        check_factors(vars(self))
        if not is_positive(self.lora_alpha):
            raise ConfigError(f"lora_alpha must be a number above 0, got {self.lora_alpha!r}")
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout!r}")
        self._refuse_lora_options()

    def _refuse_lora_options(self) -> None:
        variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]
        for name in (*variants, *_NOT_GATED):
            if getattr(self, name, None):
                raise ConfigError(f"SoRA cannot be combined with {name}; leave it unset")
        for name, usual in (("init_lora_weights", True), ("bias", "none")):
            if getattr(self, name) != usual:
                raise ConfigError(f"SoRA cannot be combined with {name}={getattr(self, name)!r}; leave it unset")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        sora_card.write_card(Path(save_directory))


class Gates(FullPrecision, nn.ParameterDict):
    """A module's gates, by adapter: float32 also in a model of half precision."""


class GatedVariant(LoraVariant):
    """What PEFT's LoRA layers ask when an adapter has gates, in place of their own B A."""

    def supports_lora_conversion(self) -> bool:
        return False  # PEFT's conversion looks at B A alone; qpeft.export is exact

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        inner = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))  # (..., r)
        return result + linear(inner, gated_b(module, active_adapter)) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + gated_update(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data = GatedVariant.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - gated_update(module, active_adapter).to(orig_weight.dtype)


def gated_b(layer: Any, adapter_name: str) -> Tensor:
    """B diag(g), (d_out, r), in B's dtype: the very numbers that an export writes, so that it computes the same."""
    b = layer.lora_B[adapter_name].weight
    return (b * layer.sora_gate[adapter_name]).to(b.dtype)


def gated_update(layer: Any, adapter_name: str) -> Tensor:
    """s B diag(g) A in float32, laid out as the base weight is: (d_out, d_in), for Conv1D (d_in, d_out)."""
    a, b = layer.lora_A[adapter_name].weight, gated_b(layer, adapter_name)
    update = b.float() @ a.float() * layer.scaling[adapter_name]
    return update.T if getattr(layer, "fan_in_fan_out", False) else update


class SoRAModel(LoraModel):
    """The tuner that PEFT builds for a SoRAConfig."""

    shrinks = False  # whether a threshold is attached to an optimiser: `sora_threshold`

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, so that a config can be used again: what training records in it belongs to this adapter alone
        config: Any = own_copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        spare_new_head(model, config)
        check_target_modules(model, config)
        for name, module in model.named_modules():
            if config.target_modules is not None and check_target_module_exists(config, name):
                check_is_matrix(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module, name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key=current_key, **kwargs
        )
        _add_gate(getattr(parent, target_name), adapter_name, lora_config, current_key)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and not self.shrinks and torch.is_grad_enabled():
            self._warn_of_no_threshold()
        return super().forward(*args, **kwargs)

    @torch.compiler.disable()
    def _warn_of_no_threshold(self) -> None:
        configs: Any = self.peft_config
        wanted = (configs[name] for _, name, gate in self.gates() if gate.requires_grad)
        if any(config.sparse_lambda or config.shrink_budget for config in wanted):
            self.shrinks = True  # once is enough
            warnings.warn(
                "SoRA: no threshold hook is attached; gates will not become zero. Use qpeft.SoRACallback.",
                stacklevel=2,
            )

    def gates(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Site, adapter and gates (r,) float32 of each adapted module."""
        for site, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                for adapter_name, gate in layer.sora_gate.items():  # type: ignore[union-attr]
                    yield site, adapter_name, gate

    # -- merging

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._check_mergeable()
        super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_mergeable()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)

    def _check_mergeable(self) -> None:
        check_not_tied(self.model, self.targeted_module_names)
        for name, layer in self.model.named_modules():
            if type(layer).__name__ == "TorchaoLoraLinear":  # it merges B A without asking the variant
                raise ConfigError(f"{name} is quantised by torchao, into which PEFT merges no gates; use qpeft.export")

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of SoRA adapters has no gates; qpeft.export each one and combine the stock adapters"
        )

    # -- loading

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        for key in state_dict:
            site, is_site, _ = key.rpartition(".lora_A.")
            if is_site and f"{site}.{GATE}" not in state_dict:
                raise CheckpointError(
                    f"the checkpoint holds no {GATE} for {site}: it is damaged, or that of a stock LoRA, which "
                    "PeftModel.from_pretrained loads with its own config"
                )
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_adapter(cls, model, adapter_name, state)
        return state


def sora_tuner(model: Any) -> SoRAModel | None:
    """The SoRA tuner in a PeftModel, also one that a trainer has wrapped; None without one."""
    return next((module for module in model.modules() if isinstance(module, SoRAModel)), None)


def _add_gate(layer: Any, adapter_name: str, config: SoRAConfig, site: str) -> None:
    """Give the adapter just made its gates, and its seeded start: A uniform on +-1/sqrt(d_in), g normal or 1."""
    if not hasattr(layer, GATE):
        layer.sora_gate = Gates()
        layer.adapter_layer_names = (*layer.adapter_layer_names, GATE)
    a: nn.Parameter = layer.lora_A[adapter_name].weight  # (r, d_in)
    gate = torch.ones(a.shape[0], device=a.device)
    if not a.is_meta:
        start = SeededStart(config.seed)
        with torch.no_grad():
            a.copy_(start.uniform(f"{site}.lora_A.weight", a.shape, 1 / math.sqrt(a.shape[1])))
            if config.gate_init == "normal":
                gate.copy_(start.normal(f"{site}.{GATE}", gate.shape))
    layer.sora_gate[adapter_name] = nn.Parameter(gate, requires_grad=a.requires_grad)
    layer.lora_variant[adapter_name] = GatedVariant()
