"""What a method will cost on a base model, before any work: counted on the meta device, without weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from qpeft.adapters.generated import find_slots
from qpeft.adapters.qpa import QPAConfig
from qpeft.adapters.targets import check_target_modules
from qpeft.errors import ConfigError
from qpeft.generators.budget import QPACount

_BYTES = 4  # float32


@dataclass(frozen=True)
class Plan:
    """The cost of a method: numbers, bytes, qubits, and notes worth reading before training."""

    method: str
    trainable: int  # numbers that the optimiser sees, `modules_to_save` included
    trainable_parts: dict[str, int]
    deployed: int  # numbers of the adapter at inference
    stored_bytes: int  # compact folder, tensors only
    exported_bytes: int  # stock folder, tensors only
    base_parameters: int
    target_modules: list[str]
    n_qubits: int | None = None
    n_chunks: int | None = None
    chunk_size: int | None = None
    hidden: tuple[int, ...] | None = None
    rank_bound: int | None = None  # of the (C, n) matrix of chunks that the MLP can make
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(base: nn.Module | PretrainedConfig | str | Path, config: PeftConfig) -> Plan:
    """Count what `config` would train, deploy and store on `base`.

    Args:
        base: A model (left untouched), a hub id, a local folder, or a transformers config; no weights are read.
        config: A QPAConfig, or a stock PEFT config to compare with.

    Raises:
        ConfigError: the base cannot be found, a target matches no module, or the settings do not fit.
    """
    model = _on_meta(base)
    base_parameters = sum(p.numel() for p in model.parameters())
    config = copy.deepcopy(config)
    check_target_modules(model, config)
    stock = config.to_stock() if isinstance(config, QPAConfig) else config
    adapted: Any = get_peft_model(model, stock)
    trainable = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    inner = adapted.get_base_model()
    targets = [name for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
    common = {"base_parameters": base_parameters, "target_modules": targets}
    if not isinstance(config, QPAConfig):
        total, stored = sum(trainable.values()), _stored_numbers(adapted)
        method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
        return Plan(method, total, {"adapter": total}, total, stored * _BYTES, stored * _BYTES, **common)
    layers = [module for module in inner.modules() if isinstance(module, LoraLayer)]
    m = sum(slot.shape.numel() for slot, _ in find_slots(inner, "default", LoraLayer))
    count = config.count(m)
    other = sum(trainable.values()) - m
    return Plan(
        method="qpa",
        trainable=count.total + other,
        trainable_parts={"angles": count.angles, "feature": count.feature, "mlp": count.mlp, "other": other},
        deployed=m + other,
        stored_bytes=(count.total + other) * _BYTES,
        exported_bytes=(m + other) * _BYTES,
        n_qubits=count.n_qubits,
        n_chunks=count.n_chunks,
        chunk_size=count.chunk_size,
        hidden=count.hidden,
        rank_bound=rank_bound(config, count),
        notes=_notes(config, count, layers),
        **common,
    )


def _stored_numbers(adapted: Any) -> int:
    """Numbers in a stock adapter's file; some methods store more than they train, VeRA its projections."""
    if adapted.active_peft_config.is_prompt_learning:
        return adapted.get_nb_trainable_parameters()[0]
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return sum(tensor.numel() for tensor in state.values())


def rank_bound(config: QPAConfig, count: QPACount) -> int:
    """Largest rank of the (C, n) chunk matrix: N + 2 for an affine MLP, last inner width + 1 otherwise."""
    inputs = count.n_qubits + (config.feature_source != "none") + 1
    if config.activation == "identity":
        return min(inputs, *(width + 1 for width in count.hidden), count.n_chunks, count.chunk_size)
    return min(count.hidden[-1] + 1, count.n_chunks, count.chunk_size)


def _notes(config: QPAConfig, count: QPACount, layers: Sequence[LoraLayer]) -> list[str]:
    notes: list[str] = []
    free = 2**count.n_qubits - 1
    n_angles = config.n_layers * count.n_qubits
    if config.feature_source in ("qnn", "qnn_frozen") and n_angles > free:
        notes.append(f"{n_angles} angles for {free} independent probabilities: the circuit is over-parametrised")
    if count.total >= count.m:
        notes.append(f"{count.total:,} trained numbers for {count.m:,} generated: not a compression")
    rank, size = _largest_lora(config, layers, count.total)
    if rank:
        notes.append(f"LoRA of rank {rank} on the same modules trains {size:,} numbers, within this budget")
    return notes


def _largest_lora(config: QPAConfig, layers: Sequence[LoraLayer], budget: int) -> tuple[int, int]:
    """The largest LoRA rank on the same modules that costs at most `budget`, and its cost."""
    per_rank = sum((layer.in_features or 0) + (layer.out_features or 0) for layer in layers)
    rank = min(budget // per_rank, config.r) if per_rank else 0
    return rank, rank * per_rank


def _on_meta(base: nn.Module | PretrainedConfig | str | Path) -> nn.Module:
    if isinstance(base, nn.Module):
        return _meta_copy(base)
    if isinstance(base, (str, Path)):
        try:
            base = AutoConfig.from_pretrained(base)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no model at '{base}': give a hub id that can be reached, or a local folder with config.json "
                f"({str(error).splitlines()[0]})"
            ) from error
    if type(base) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{type(base).__name__} is no causal language model; give the model itself to plan for it")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base)


def _meta_copy(model: nn.Module) -> nn.Module:
    """The same modules with every tensor on the meta device; nothing is allocated, `model` is untouched."""
    shells = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, shells)
