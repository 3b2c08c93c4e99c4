"""SoRA (arXiv 2311.11696) as a PEFT tuner: LoRA with a gate on each rank, many of which become exactly zero.

    y = W0 x + b0 + s B (g * (A D(x)))        A (r, d_in), g (r,), B (d_out, r), s = lora_alpha / r, D dropout

After each optimizer step the gates are moved towards zero (`threshold.py`). An export leaves out the ranks whose gate
is zero, and multiplies the other gates into B. PEFT's layers do the rest, because they find the matrix B diag(g) where
a LoRA has B.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from qpeft.checks import option
from qpeft.core.adapter_form import StockAdapter, count_trainable
from qpeft.core.config import AdapterConfig, MethodName, refuse_lora_options
from qpeft.core.generator import FullPrecision, ParameterGroup
from qpeft.core.own_tuner import CompleteTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import check_is_matrix, check_not_tied, check_target_modules
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.sora.settings import SoRASettings


@dataclass
class SoRAConfig(SoRASettings, AdapterConfig, LoraConfig):
    """LoRA's settings (r, the rank to begin with, lora_alpha, target_modules, ...) and those of the gates.

    Training needs `qpeft.SoRACallback`. Example::

        model = get_peft_model(base, SoRAConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        Trainer(model=model, callbacks=[SoRACallback()], ...).train()

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that cannot be gated.
    """

    lora_alpha: int = option(16, "The update is multiplied by lora_alpha / r.")
    sora_lambda: float | None = option(
        None, "Threshold divided by the learning rate; filled in when training begins.", filled_in=True
    )

    def __post_init__(self) -> None:
        AdapterConfig.__post_init__(self)
        SoRASettings.__post_init__(self)
        self.peft_type = MethodName("QPEFT_SORA")  # type: ignore[assignment]
        refuse_lora_options(self, "SoRA", more=("lora_bias",))
        for name, usual in (("init_lora_weights", True), ("bias", "none")):
            if getattr(self, name) != usual:
                raise ConfigError(f"SoRA cannot be combined with {name}={getattr(self, name)!r}; leave it unset")


def rank_of(gate: Tensor) -> int:
    """The number of ranks that an export keeps; in a plan, of all ranks."""
    return len(gate) if gate.is_meta else int(gate.count_nonzero())


class Gate(FullPrecision):
    """The gates g (r,) of a module, float32 also in a model of half precision."""

    groups: ClassVar[Mapping[str, ParameterGroup]] = {"g": ParameterGroup("gates")}

    def __init__(self, g: nn.Parameter) -> None:
        super().__init__()
        self.g = g


class GatedB(nn.Module):
    """B diag(g) in place of LoRA's B, for PEFT's forward pass, merging and conversion."""

    def __init__(self, b: nn.Module, g: nn.Parameter) -> None:
        super().__init__()
        self.b, self.sora_gate = b, Gate(g)

    @property
    def weight(self) -> Tensor:
        """(d_out, r), in B's dtype: exactly the values of an export."""
        b: Any = self.b.weight
        return (b * self.sora_gate.g).to(b.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class SoRAModel(CompleteTuner, LoraModel):
    """The tuner that PEFT builds for a SoRAConfig."""

    shrinks = False  # whether a threshold is attached to an optimizer

    def gates(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Site, adapter and gates (r,) float32 of each adapted module."""
        for site, layer in self.model.named_modules():
            for adapter_name, b in layer.lora_B.items() if isinstance(layer, LoraLayer) else ():
                yield site, adapter_name, b.sora_gate.g  # type: ignore[union-attr]

    def _set_targets(self, model: nn.Module, config: Any) -> None:
        check_target_modules(model, config)

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride] parameters have two names in PEFT
        self, config: Any, adapter_name: str, target: Any, name: str, parent: Any, current_key: str, **kwargs: Any
    ) -> None:
        check_is_matrix(target.get_base_layer() if isinstance(target, BaseTunerLayer) else target, current_key)
        super()._create_and_replace(config, adapter_name, target, name, parent, current_key=current_key, **kwargs)
        layer = getattr(parent, name)
        a: nn.Parameter = layer.lora_A[adapter_name].weight  # (r, d_in)
        g = torch.ones(a.shape[0], device=a.device)
        if not a.is_meta:  # A is uniform on +-1/sqrt(d_in)
            init = SeededInit(config.seed)
            with torch.no_grad():
                a.copy_(init.uniform(f"{current_key}.lora_A.weight", a.shape, 1 / math.sqrt(a.shape[1])))
                g.copy_(init.normal(f"{current_key}.sora_gate", g.shape))
        layer.lora_B[adapter_name] = GatedB(layer.lora_B[adapter_name], nn.Parameter(g, requires_grad=a.requires_grad))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and not self.shrinks and torch.is_grad_enabled():
            self._warn_of_no_threshold()
        return super().forward(*args, **kwargs)

    @torch.compiler.disable()
    def _warn_of_no_threshold(self) -> None:
        configs: Any = self.peft_config
        self.shrinks = True  # warn once
        if any(config.sparse_lambda or config.shrink_budget for config in configs.values()):
            text = "SoRA: no threshold hook is attached; gates will not become zero. Use qpeft.SoRACallback."
            warnings.warn(QpeftWarning(text), stacklevel=2)

    def count_deployed(self, model: Any) -> int:
        n = count_trainable(model)
        for site, adapter_name, gate in self.gates():
            if adapter_name in self.active_adapters:
                layer: Any = self.model.get_submodule(site)
                n -= len(gate) + (len(gate) - rank_of(gate)) * (layer.in_features + layer.out_features)
        return n

    def is_empty(self) -> bool:
        return not any(rank_of(gate) for _, name, gate in self.gates() if name in self.active_adapters)

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        """The stock LoRA equal to a gated adapter. Raises ConfigError if every gate is zero.

        K = {k: g_k != 0}    A' = A[K]    B' = B[:, K] diag(g_K)    alpha' / r' as alpha / r was, r' = |K|
        """
        config: Any = self.peft_config[adapter_name]
        gates = {site: gate.detach() for site, name, gate in self.gates() if name == adapter_name}
        layers: dict[str, Any] = {site: self.model.get_submodule(site) for site in gates}
        widths = {site: layer.in_features + layer.out_features for site, layer in layers.items()}
        ranks = {site: rank_of(gate) for site, gate in gates.items()}
        left = {site: rank for site, rank in ranks.items() if rank}
        if not left:
            raise ConfigError(
                "SoRA export: every gate is zero, so the adapter has no effect. Lower shrink_budget (now "
                f"{config.shrink_budget}) or sparse_lambda (now {config.sparse_lambda})."
            )
        state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        own = tuple(f"base_model.model.{site}.lora_" for site in gates)
        tensors = {key: value for key, value in state.items() if not key.startswith(own) and ".base_layer." not in key}
        for site in left:
            kept, a, b = gates[site] != 0, layers[site].lora_A[adapter_name], layers[site].lora_B[adapter_name]
            tensors[f"base_model.model.{site}.lora_A.weight"] = a.weight[kept]
            tensors[f"base_model.model.{site}.lora_B.weight"] = b.weight[:, kept]
        names = {f.name for f in fields(LoraConfig) if f.init} - {"peft_type", "runtime_config"}
        stock: Any = LoraConfig(**{name: getattr(config, name) for name in names})
        stock.target_modules, stock.exclude_modules = set(left), None
        scales = {site: rank**0.5 if config.use_rslora else rank for site, rank in left.items()}
        alphas = {site: layers[site].scaling[adapter_name] * scale for site, scale in scales.items()}
        most = max(left, key=left.__getitem__)
        stock.r, stock.lora_alpha = left[most], alphas[most]
        stock.rank_pattern, stock.alpha_pattern = _patterns(left), _patterns(alphas)
        options = ("shrink_budget", "sparse_lambda", "sora_lambda", "seed")
        n_trained = sum(len(gate) * (widths[site] + 1) for site, gate in gates.items())
        n_deployed = sum(rank * widths[site] for site, rank in left.items())
        return StockAdapter(
            tensors=tensors,
            config=stock,
            settings={"method": "SoRA (arXiv 2311.11696)", **{name: getattr(config, name) for name in options}},
            n_trained=n_trained,
            n_deployed=n_deployed,
            ranks=ranks,
        )

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        check_not_tied(self.model, self.targeted_module_names)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "a weighted sum of SoRA adapters has no gates; qpeft.export each one and combine the stock adapters"
        )


def _patterns(values: dict[str, Any]) -> dict[str, Any]:
    """Patterns of the whole names of these modules."""
    return {f"^{re.escape(site)}": value for site, value in values.items()}
