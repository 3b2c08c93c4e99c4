"""From a gated adapter to the stock LoRA that it is: ranks whose gate is zero are left out, the others' folded into B.

K = {k: |g_k| > tol}    A' = A[K]    B' = B[:, K] diag(g_K)    alpha' / r' as alpha / r was, r' = |K|
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from qpeft.core import exported_folder as stock_folder
from qpeft.core.checkpoint import WEIGHTS
from qpeft.core.probe import probe_inputs
from qpeft.errors import ConfigError
from qpeft.files import file_hash, replace_folder, write_json
from qpeft.methods.sora import card as sora_card
from qpeft.methods.sora.config import SoRAConfig
from qpeft.methods.sora.layer import GATE, gated_b


@dataclass(frozen=True)
class SoRAExportReport:
    """What was written, and how far its logits are from the live model's."""

    path: str
    ranks: dict[str, int]  # of each adapted module, 0 where every gate went
    rank_before: int  # of all modules together
    n_zero: int  # gates that are exactly 0
    n_dropped: int  # gates that are left out: those, and others within export_tol
    n_trained: int  # parameters of A, B and the gates
    n_deployed: int  # parameters of the stock LoRA: r' (d_in + d_out) of each module
    n_bytes: int  # size of adapter_model.safetensors
    max_logit_difference: float | None  # from the live model without the gates left out; None: base without weights
    max_logit_change: float | None  # what leaving out gates within export_tol that are not 0 does to the logits

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Site(NamedTuple):
    """A gated module: its ranks that stay, its stock rank and alpha."""

    name: str
    layer: Any
    kept: Tensor  # (r,) bool

    @property
    def rank(self) -> int:
        return int(self.kept.sum())

    def alpha(self, adapter_name: str) -> float:
        """alpha' with alpha' / r' = alpha / r; under rsLoRA of the roots."""
        share = self.rank / self.layer.r[adapter_name]
        alpha = self.layer.lora_alpha[adapter_name] * (
            math.sqrt(share) if self.layer.use_rslora[adapter_name] else share
        )
        return int(alpha) if alpha == int(alpha) else alpha


def export_sora(
    tuner: Any, model: Any, target: Path, adapter_name: str, probe: Mapping[str, Tensor] | None = None
) -> SoRAExportReport:
    """Write the adapter as a stock LoRA folder, reload it with stock PEFT, and compare logits; see `qpeft.export`.

    Raises:
        ConfigError: every gate is zero, a merged adapter, non-finite numbers, or a foreign folder in the way.
        VerificationError: the reloaded adapter does not give the same logits: 1e-6, or 64 roundings of the largest.
    """
    stock_folder.check_free(target)
    stock_folder.check_not_merged(model)
    config: Any = tuner.peft_config[adapter_name]
    sites = _find_sites(tuner, adapter_name, config.export_tol)
    _check_not_empty(sites, config)
    with replace_folder(target) as folder, _as_found(tuner, model):
        state = stock_folder.to_file(_stock_state(model, adapter_name, sites))
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        stock_folder.write_config(to_stock(config, sites, adapter_name), model, folder)
        report = SoRAExportReport(
            path=str(target),
            **_counts(sites, adapter_name),
            n_bytes=(folder / WEIGHTS).stat().st_size,
            **_verify(model, adapter_name, folder, sites, probe),
        )
        _describe(model, config, folder, report)
    return report


def to_stock(config: SoRAConfig, sites: list[_Site], adapter_name: str) -> LoraConfig:
    """The stock config: the most frequent rank and alpha, patterns of whole names for others, empty sites excluded."""
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


def count_parameters(tuner: Any) -> tuple[int, int]:
    """How many parameters the active SoRA adapters train, and how many an export of them would have."""
    configs: Any = tuner.peft_config
    found = [_counts(_find_sites(tuner, name, configs[name].export_tol), name) for name in tuner.active_adapters]
    return sum(counts["n_trained"] for counts in found), sum(counts["n_deployed"] for counts in found)


def zero_pruned_gates(tuner: Any, adapter_name: str) -> None:
    """Set the gates that an export leaves out to zero, in place, so that the live model is the exported one."""
    for site in _find_sites(tuner, adapter_name, tuner.peft_config[adapter_name].export_tol):
        _zero(site, adapter_name)


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


def _check_not_empty(sites: list[_Site], config: SoRAConfig) -> None:
    if not any(site.rank for site in sites):
        raise ConfigError(
            f"SoRA export: every gate is {f'within {config.export_tol} of ' if config.export_tol else ''}zero; the "
            f"adapter is a no-op. Lower shrink_budget (now {config.shrink_budget}) or sparse_lambda (now "
            f"{config.sparse_lambda})."
        )


def _stock_state(model: Any, adapter_name: str, sites: list[_Site]) -> dict[str, Tensor]:
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


def _verify(
    model: Any, adapter_name: str, folder: Path, sites: list[_Site], probe: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    if any(p.is_meta for p in model.parameters()):
        return {"max_logit_difference": None, "max_logit_change": None}
    inputs = dict(probe) if probe is not None else probe_inputs(model)
    full = sites[0].layer.lora_A[adapter_name].weight.dtype == torch.float32
    stock = stock_folder.load_stock(model, folder, inputs, autocast_adapter_dtype=full)
    model.base_model.set_adapter([adapter_name])
    model.eval()
    live = stock_folder.scores(model, inputs)
    before = {site.name: site.layer.sora_gate[adapter_name].detach().clone() for site in sites}
    try:
        for site in sites:
            _zero(site, adapter_name)
        exact = stock_folder.scores(model, inputs)
    finally:
        for site in sites:
            site.layer.sora_gate[adapter_name].data.copy_(before[site.name])
    allowed = stock_folder.tolerance(exact, same_shapes=False)
    return {
        "max_logit_difference": stock_folder.check_equal(exact, stock_folder.scores(stock, inputs), allowed),
        "max_logit_change": (live.float() - exact.float()).abs().max().item(),
    }


def _describe(model: Any, config: SoRAConfig, folder: Path, report: SoRAExportReport) -> None:
    settings = ("shrink_budget", "sparse_lambda", "sora_lambda", "planned_steps", "gate_init", "export_tol", "seed")
    record = {
        "made_by": f"qpeft {version('qpeft')}",
        "method": "SoRA (arXiv 2311.11696)",
        **{name: getattr(config, name) for name in settings},
        "weights_sha256": file_hash(folder / WEIGHTS),
        **{k: v for k, v in report.to_dict().items() if k != "path"},
    }
    write_json(folder / stock_folder.RECORD, record)
    base = stock_folder.base_name(model, config) or "BASE_MODEL"
    sora_card.write_exported_card(folder, base, record, tied=stock_folder.tied_target(model))


@contextmanager
def _as_found(tuner: Any, model: Any) -> Iterator[None]:
    """Afterwards the same adapters are active, the same parameters trainable, the same mode on."""
    active = list(tuner.active_adapters)
    with stock_folder.same_mode_after(model):
        try:
            yield
        finally:
            tuner.set_adapter(active)


def _with_pattern(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the others by a pattern that matches their module's whole name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def _zero(site: _Site, adapter_name: str) -> None:
    site.layer.sora_gate[adapter_name].data[~site.kept.to(site.layer.sora_gate[adapter_name].device)] = 0.0
