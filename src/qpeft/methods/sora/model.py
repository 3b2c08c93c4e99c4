"""SoRA (arXiv 2311.11696) as a PEFT tuner: LoRA with a gate on each rank, many of which become exactly zero.

    y = W0 x + b0 + s B (g * (A D(x)))        A (r, d_in), g (r,), B (d_out, r), s = lora_alpha / r, D dropout

After each optimizer step the gates are moved towards zero (`threshold.py`). An export leaves out the ranks whose gate
is zero. PEFT's layers do the rest: a gated adapter is what PEFT calls a variant of LoRA.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from qpeft.core.adapter_form import StockAdapter, complete_state, count_trainable
from qpeft.core.base_digest import bind_base
from qpeft.core.config import own_copy
from qpeft.core.load_checks import check_adapter
from qpeft.core.targets import check_is_matrix, check_rank, check_target_modules, exclude_classifier_head
from qpeft.core.tied_weights import check_not_tied
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.sora import export as sora_export
from qpeft.methods.sora import threshold
from qpeft.methods.sora.layer import GATE, GatedTuner, add_gate


class SoRAModel(GatedTuner, LoraModel):
    """The tuner that PEFT builds for a SoRAConfig."""

    prunes = True
    empty_warning = (
        "every gate of SoRA is zero, so there is no adapter to export; train again in another run folder with a lower "
        "shrink_budget or sparse_lambda, or a higher gate_lr_mult"
    )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a copy, because training records this adapter's threshold in it
        config: Any = own_copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        exclude_classifier_head(model, config)
        check_target_modules(model, config)
        # an adapter may have the name of a target module
        within = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        for name, module in model.named_modules():
            if name.startswith(within) or config.target_modules is None:
                continue
            if check_target_module_exists(config, name):
                layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
                check_is_matrix(layer, name)
                check_rank(config, layer, name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        bind_base(config, model, adapter_name)

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
        add_gate(getattr(parent, target_name), adapter_name, lora_config, current_key)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and not self.shrinks and torch.is_grad_enabled():
            self._warn_of_no_threshold()
        return super().forward(*args, **kwargs)

    @torch.compiler.disable()
    def _warn_of_no_threshold(self) -> None:
        configs: Any = self.peft_config
        wanted = (configs[name] for _, name, gate in self.gates() if gate.requires_grad)
        if any(config.sparse_lambda or config.shrink_budget for config in wanted):
            self.shrinks = True  # warn once
            warnings.warn(
                "SoRA: no threshold hook is attached; gates will not become zero. Use qpeft.SoRACallback.",
                stacklevel=2,
            )

    # -- the remaining ranks

    def count_deployed(self, model: Any) -> int:
        trained, left = sora_export.count_parameters(self)
        return left + count_trainable(model) - trained

    def is_empty(self) -> bool:
        return sora_export.count_parameters(self)[1] == 0

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        return sora_export.stock_adapter(self, model, adapter_name)

    def pruned(self, adapter_name: str) -> AbstractContextManager[None]:
        return sora_export.pruned_gates(self, adapter_name)

    def own_groups(self, lr: float) -> list[dict[str, Any]]:
        """The trained gates by adapter, without weight decay."""
        configs: Any = self.peft_config
        found: dict[str, list[nn.Parameter]] = {}
        for _, adapter_name, gate in self.gates():
            if gate.requires_grad:
                found.setdefault(adapter_name, []).append(gate)
        return [
            {"name": "gates", "params": gates, "lr": lr * configs[name].gate_lr_mult, "weight_decay": 0.0}
            for name, gates in found.items()
        ]

    def on_optimizer(self, optimizer: Any, steps: int) -> None:
        threshold.attach(optimizer, self, steps=steps)

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
            if type(layer).__name__ == "TorchaoLoraLinear":  # it merges B A and ignores the variant
                raise ConfigError(f"PEFT cannot merge gates into {name}, quantized by torchao; use qpeft.export")

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of SoRA adapters has no gates; qpeft.export each one and combine the stock adapters"
        )

    # -- loading

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        state = complete_state(model, adapter_name, state_dict)
        return super()._get_adapter_state_dict(model, config, adapter_name, state, unwanted_adapter_names)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        for key in state_dict:
            site, is_site, _ = key.rpartition(".lora_A.")
            if is_site and f"{site}.{GATE}" not in state_dict:
                raise CheckpointError(
                    f"the checkpoint contains no {GATE} for {site}: it is damaged, or that of a stock LoRA, which "
                    "PeftModel.from_pretrained loads with its own config"
                )
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_adapter(cls, model, adapter_name, state)
        return state
