"""The stock LoRA equal to a gated adapter: ranks whose gate is zero are left out, other gates are multiplied into B.

K = {k: |g_k| > tol}    A' = A[K]    B' = B[:, K] diag(g_K)    alpha' / r' as alpha / r was, r' = |K|
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from qpeft.core.adapter_form import ExportReport, StockAdapter
from qpeft.errors import ConfigError
from qpeft.methods.sora.config import SoRAConfig
from qpeft.methods.sora.layer import GATE, gated_b


@dataclass(frozen=True, kw_only=True)
class SoRAExportReport(ExportReport):
    """The export of a SoRA adapter; A, B and the gates have `n_trained` parameters.

    `max_logit_difference` is from the live model without the gates left out.
    """

    ranks: dict[str, int]  # of each adapted module, 0 where every gate is zero
    rank_before: int  # of all modules together
    n_zero: int  # gates that are exactly 0
    n_dropped: int  # gates that are left out: zero, or within export_tol
    n_deployed: int  # parameters of the stock LoRA: r' (d_in + d_out) of each module
    max_logit_change: float | None  # of the live model, when gates within export_tol that are not 0 are left out


class _Site(NamedTuple):
    """A gated module and the ranks that remain."""

    name: str
    layer: Any
    kept: Tensor  # (r,) bool

    @property
    def rank(self) -> int:
        return int(self.kept.sum())

    def alpha(self, adapter_name: str) -> float:
        """alpha' with alpha' / r' = alpha / r; with rsLoRA, alpha' / sqrt(r') = alpha / sqrt(r)."""
        share = self.rank / self.layer.r[adapter_name]
        alpha = self.layer.lora_alpha[adapter_name] * (
            math.sqrt(share) if self.layer.use_rslora[adapter_name] else share
        )
        return int(alpha) if alpha == int(alpha) else alpha


_SETTINGS = ("shrink_budget", "sparse_lambda", "sora_lambda", "planned_steps", "gate_init", "export_tol", "seed")


def stock_adapter(tuner: Any, model: Any, adapter_name: str) -> StockAdapter:
    """The stock LoRA that a gated adapter is equal to.

    Raises:
        ConfigError: every gate is zero, or a gate is not finite.
    """
    config: Any = tuner.peft_config[adapter_name]
    sites = _find_sites(tuner, adapter_name, config.export_tol)
    counts = _counts(sites, adapter_name)
    if not counts["n_deployed"]:
        raise ConfigError(
            f"SoRA export: every gate is {f'within {config.export_tol} of ' if config.export_tol else ''}zero, so the "
            f"adapter has no effect. Lower shrink_budget (now {config.shrink_budget}) or sparse_lambda (now "
            f"{config.sparse_lambda})."
        )
    return StockAdapter(
        tensors=_tensors(model, adapter_name, sites),
        config=_config(config, sites, adapter_name),
        is_half=sites[0].layer.lora_A[adapter_name].weight.dtype != torch.float32,
        settings={"method": "SoRA (arXiv 2311.11696)", **{name: getattr(config, name) for name in _SETTINGS}},
        report=SoRAExportReport,
        counts=counts,
        host="LoRA",
        origin=f"Of {counts['rank_before']} ranks in {len(sites)} modules that SoRA trained ({counts['n_trained']:,} "
        f"parameters, arXiv\n2311.11696), {sum(counts['ranks'].values())} are left ({counts['n_deployed']:,} "
        "parameters); their gates are multiplied into `lora_B`.",
    )


@contextmanager
def pruned_gates(tuner: Any, adapter_name: str) -> Iterator[None]:
    """Within: the gates that an export leaves out are zero, so that the live model equals the exported one."""
    sites = _find_sites(tuner, adapter_name, tuner.peft_config[adapter_name].export_tol)
    gates = [site.layer.sora_gate[adapter_name].data for site in sites]
    before = [gate.clone() for gate in gates]
    try:
        for site, gate in zip(sites, gates, strict=True):
            gate[~site.kept.to(gate.device)] = 0.0
        yield
    finally:
        for gate, value in zip(gates, before, strict=True):
            gate.copy_(value)


def count_parameters(tuner: Any) -> tuple[int, int]:
    """Trained parameters of the active SoRA adapters, and parameters of their exports."""
    configs: Any = tuner.peft_config
    found = [_counts(_find_sites(tuner, name, configs[name].export_tol), name) for name in tuner.active_adapters]
    return sum(counts["n_trained"] for counts in found), sum(counts["n_deployed"] for counts in found)


def _find_sites(tuner: Any, adapter_name: str, tol: float) -> list[_Site]:
    modules = dict(tuner.model.named_modules())
    sites = []
    for name, adapter, gate in tuner.gates():
        if adapter != adapter_name:
            continue
        if not gate.isfinite().all():
            raise ConfigError(f"non-finite adapter parameter in {name}.{GATE}; export an earlier checkpoint")
        sites.append(_Site(name, modules[name], (gate.detach().abs() > tol).cpu()))
    return sites


def _config(config: SoRAConfig, sites: list[_Site], adapter_name: str) -> LoraConfig:
    """The most frequent rank and alpha, patterns of whole names for the others; modules without ranks are excluded."""
    names = {f.name for f in fields(LoraConfig) if f.init} - {"peft_type", "runtime_config"}
    stock = LoraConfig(**{name: copy.deepcopy(getattr(config, name)) for name in names})
    ranks = {site.name: site.rank for site in sites if site.rank}
    alphas = {site.name: site.alpha(adapter_name) for site in sites if site.rank}
    stock.r, stock.rank_pattern = _with_pattern(ranks)
    stock.lora_alpha, stock.alpha_pattern = _with_pattern(alphas)
    if empty := [site.name for site in sites if not site.rank]:
        excluded = stock.exclude_modules or []
        if isinstance(excluded, str):
            stock.exclude_modules = "|".join([f"({excluded})", *map(re.escape, empty)])
        else:
            stock.exclude_modules = sorted({*excluded, *empty})
    return stock


def _tensors(model: Any, adapter_name: str, sites: list[_Site]) -> dict[str, Tensor]:
    """Keys, shapes and dtypes as stock PEFT saves them."""
    found = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = {key: value for key, value in found.items() if ".base_layer." not in key}
    for site in sites:
        prefix = f"base_model.model.{site.name}."
        a, _, _ = (state.pop(prefix + part) for part in ("lora_A.weight", "lora_B.weight", GATE))  # (r, d_in)
        kept = site.kept.to(a.device)
        if site.rank:
            state[f"{prefix}lora_A.weight"] = a[kept]
            state[f"{prefix}lora_B.weight"] = gated_b(site.layer, adapter_name)[:, kept]
    return state


def _counts(sites: list[_Site], adapter_name: str) -> dict[str, Any]:
    gates = [site.layer.sora_gate[adapter_name] for site in sites]
    widths = [site.layer.in_features + site.layer.out_features for site in sites]
    before = [gate.numel() for gate in gates]
    return {
        "ranks": {site.name: site.rank for site in sites},
        "rank_before": sum(before),
        "n_zero": sum(int((gate == 0).sum()) for gate in gates),
        "n_dropped": sum(before) - sum(site.rank for site in sites),
        "n_trained": sum(r * width + r for r, width in zip(before, widths, strict=True)),
        "n_deployed": sum(site.rank * width for site, width in zip(sites, widths, strict=True)),
    }


def _with_pattern(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the others by a pattern that matches their module's whole name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}
