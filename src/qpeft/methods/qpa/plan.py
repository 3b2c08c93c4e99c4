"""QPA's counts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from qpeft.circuits import Ansatz
from qpeft.core.adapter_form import count_trainable
from qpeft.core.binding import Slot
from qpeft.core.generator_holder import GeneratorHolder
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import find_slots
from qpeft.methods.attach.tensors import generated_slots, other_keys
from qpeft.methods.counting import BYTES, Plan, count_stored
from qpeft.methods.qpa.budget import QPACount
from qpeft.methods.qpa.config import QPAConfig
from qpeft.methods.qpa.features import slow_circuit
from qpeft.methods.qpa.generator import QPAGenerator, QPAGeneratorConfig
from qpeft.methods.qpa.settings import QPASettings


def count_qpa(config: QPAConfig, adapted: Any) -> dict[str, Any]:
    """QPA's fields of a Plan; `adapted` is the stock LoRA on the meta device."""
    return _count(config, adapted, find_slots(adapted.get_base_model(), "default", LoraLayer))


def count_attached(generator: QPAGeneratorConfig, adapted: Any) -> dict[str, Any]:
    """As `count_qpa`, for QPA attached to any stock adapter, whose initial values are in the compact checkpoint."""
    found = generated_slots(adapted, "default")
    counts = _count(generator, adapted, found)
    initial = sum(slot.shape.numel() for slot, _ in found) if generator.init_mode == "residual" else 0
    note = f"the compact checkpoint also contains the adapter's initial values, {initial:,} parameters"
    not_stock = str(getattr(adapted.peft_type, "value", adapted.peft_type)).startswith("QPEFT")
    trained = counts["trainable"] - counts["trainable_parts"]["other"]
    return {
        **counts,
        "stored_bytes": (trained + initial + _count_others(adapted, found)) * BYTES,
        "exported_bytes": None if not_stock else count_stored(adapted) * BYTES,
        "notes": [*counts["notes"], *([note] if initial else [])],
    }


def untrained(config: QPAGeneratorConfig, plan: Plan) -> QPAGenerator:
    """The generator of `config` with its initial values, and with initial values 0 of the adapter."""
    settings = {f.name: getattr(config, f.name) for f in fields(QPAGeneratorConfig)}
    counted = {"budget": None, "chunk_size": plan.chunk_size, "hidden": plan.hidden}
    m = (plan.n_chunks or 0) * (plan.chunk_size or 0)  # whole chunks, as many for each generator
    with warnings.catch_warnings():  # about its size, which is a note of the plan
        warnings.simplefilter("ignore")
        return QPAGenerator(QPAGeneratorConfig(**{**settings, **counted}), torch.zeros(m), SeededInit(config.seed))


def circuit(config: QPASettings, n_qubits: int) -> tuple[Ansatz, bool] | None:
    """The circuit of `config.feature_source`, and whether its angles are trained; None for the other sources."""
    if config.feature_source not in ("qnn", "qnn_frozen"):
        return None
    return Ansatz(config.ansatz, n_qubits, config.n_layers), config.feature_source == "qnn"


def _count_others(adapted: Any, found: Sequence[tuple[Slot, Any]]) -> int:
    generated = {slot.owner._parameters[slot.name].untyped_storage()._cdata for slot, _ in found}  # type: ignore[union-attr]
    state = adapted.state_dict()
    keys = other_keys(adapted, "default", GeneratorHolder.container).values()
    others = [state[key] for key in keys if not key.endswith("fingerprint")]
    return sum(tensor.numel() for tensor in others if tensor.untyped_storage()._cdata not in generated)


def _count(config: QPAGeneratorConfig, adapted: Any, found: Sequence[tuple[Slot, Any]]) -> dict[str, Any]:
    layers = [module for module in adapted.get_base_model().modules() if isinstance(module, LoraLayer)]
    m = sum(slot.shape.numel() for slot, _ in found)
    count = config.count(m)
    other = count_trainable(adapted) - m
    parts = {"angles": count.angles, "feature": count.feature, "network" if count.hidden else "map": count.mlp}
    return {
        "method": "qpa",
        "trainable": count.total + other,
        "trainable_parts": {**parts, "other": other},
        "deployed": m + other,
        "stored_bytes": (count.total + other) * BYTES,
        "exported_bytes": (m + other) * BYTES,
        "needs_qpeft": True,
        "n_qubits": count.n_qubits,
        "n_circuits": config.n_generators if circuit(config, count.n_qubits) else None,
        "n_chunks": count.n_chunks,
        "chunk_size": count.chunk_size,
        "hidden": count.hidden,
        "rank_bound": _rank_bound(config, count),
        "notes": _notes(config, count, layers),
    }


def _rank_bound(config: QPAGeneratorConfig, count: QPACount) -> int:
    """Largest rank of the (C, n) chunk matrix: inputs of a linear map, + 1 for the biases of an affine one, otherwise
    last inner width + 1.

    Each of several generators adds as much.
    """
    size = config.size(count.m)
    inputs = size.inputs(count.n_qubits - size.feature_qubits, count.hidden)
    widths = count.hidden[-1:] if count.hidden and config.activation != "identity" else (inputs, *count.hidden)
    rank = min(widths) + bool(count.hidden)
    return min(config.n_generators * rank, count.n_chunks, count.chunk_size)


def _notes(config: QPAGeneratorConfig, count: QPACount, layers: Sequence[LoraLayer]) -> list[str]:
    notes: list[str] = []
    free = 2**count.n_qubits - 1
    n_angles = Ansatz(config.ansatz, count.n_qubits, config.n_layers).n_angles
    if config.feature_source in ("qnn", "qnn_frozen") and n_angles > free:
        notes.append(f"{n_angles} angles for {free} independent probabilities: the circuit is over-parametrized")
    if slow := slow_circuit(config, count):
        notes.append(slow)
    if count.total >= count.m:
        notes.append(f"{count.total:,} trained parameters for {count.m:,} generated: not a compression")
    ranks = [next(iter(layer.r.values())) for layer in layers]
    of_lora = min(ranks, default=1)  # experts and the keys of rank_pattern have multiples of it
    per_rank = sum(_entries(layer) * (rank // of_lora) for layer, rank in zip(layers, ranks, strict=True))
    allowed = count.total if config.chunk_size is not None else max(count.total, config.budget_count(count.m))
    if rank := min(allowed // per_rank, of_lora) if per_rank else 0:
        size = rank * per_rank
        notes.append(f"LoRA of rank {rank} on the same modules trains {size:,} parameters, within this budget")
    return notes


def _entries(layer: Any) -> int:
    """Entries of lora_A and lora_B for each rank, of all experts."""
    return getattr(layer, "num_experts", 1) * ((layer.in_features or 0) + (layer.out_features or 0))
