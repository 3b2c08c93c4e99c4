"""The variation of QAA's features on given data: features that hardly vary do not help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.core.adapter_form import check_adapted
from qpeft.errors import ConfigError, DataError
from qpeft.methods.qaa.layer import QAALayer

LOW_VARIANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SiteFeatures:
    """`mean` and `variance` (n,) of each feature at the adapted module `name`, over `n_tokens` tokens.

    `low_share` is the share of features whose variance is below 1e-3; `warnings` explain it.
    """

    name: str
    n_tokens: int
    mean: list[float]
    variance: list[float]  # 1 for a real circuit on isotropic inputs
    low_share: float  # of the features, those with a variance below 1e-3
    warnings: list[str] = field(default_factory=list)


def feature_report(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], adapter_name: str = "default"
) -> list[SiteFeatures]:
    """The variation of the features of `adapter_name` on `batches`, one row per module.

    Tokens that a batch's `attention_mask` (B, T) marks as padding are excluded. The model runs in evaluation mode and
    is not changed. A row warns if more than half of its features have a variance below 1e-3: a few large coordinates of
    the inputs dominate, or the inputs hardly differ.

    Raises:
        ConfigError: the model has no such QAA adapter, or one without features.
        DataError: there are no batches.
    """
    check_adapted(model)
    found = _collect(model, batches, adapter_name)
    if not all(sum(map(len, parts)) for parts in found.values()):
        raise DataError("no tokens to report on; give at least one batch that reaches every adapted module")
    return [_row(name, torch.cat(parts)) for name, parts in found.items()]


def _collect(model: Any, batches: Iterable[Mapping[str, Any]], adapter_name: str) -> dict[str, list[Tensor]]:
    """The features (tokens, features), float64, of each module and batch."""
    branches: dict[QAALayer, Any] = {
        module: module.qaa_branch[adapter_name]
        for module in model.modules()
        if isinstance(module, QAALayer) and adapter_name in module.qaa_branch
    }
    if not branches or all(branch.features is None for branch in branches.values()):
        raise ConfigError(f"the model has no QAA adapter '{adapter_name}' with features to report on")
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in branches}
    mask = None

    def collect(layer: QAALayer, args: tuple[Any, ...]) -> None:
        f = branches[layer].read(args[0])
        is_token = mask.bool() if mask is not None and mask.shape == f.shape[:-1] else slice(None)
        found[layer.name].append(f[is_token].flatten(0, -2).double().cpu())

    was_training = model.training
    handles = [layer.register_forward_pre_hook(collect) for layer in branches]
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                model(**batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _row(name: str, f: Tensor) -> SiteFeatures:
    variance = f.var(0, correction=0)
    share = (variance < LOW_VARIANCE).double().mean().item()
    warning = (
        f"{name}: {share:.0%} of the features have a variance below {LOW_VARIANCE:g} on this data, so they hardly "
        "distinguish tokens; consider carry_norm=True or other target_modules"
    )
    return SiteFeatures(
        name=name,
        n_tokens=len(f),
        mean=f.mean(0).tolist(),
        variance=variance.tolist(),
        low_share=share,
        warnings=[warning] if share > 0.5 else [],
    )
