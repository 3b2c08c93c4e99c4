"""Quantum-PEFT's counts, from its layout, without computing factors or frames."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from peft.tuners.lora import LoraLayer
from torch import nn

from qpeft.circuits.counting import column_qubits, count_acting
from qpeft.core.adapter_form import count_trainable
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import check_is_matrix
from qpeft.methods.counting import BYTES
from qpeft.methods.quantum_peft.config import QuantumPeftConfig
from qpeft.methods.quantum_peft.factors import BANKS, count_drawn
from qpeft.methods.quantum_peft.layout import Layout, Matrix
from qpeft.methods.quantum_peft.model import gain_slots
from qpeft.methods.quantum_peft.quantize import stored_sizes

_FRAME_BYTES, _HEADER_BYTES = 2, 4  # float16; two of them for a group of quantized angles


class _Factors(NamedTuple):
    """n factors (w, K) of p parameters each."""

    n: int
    width: int
    rank: int
    p: int


def count_quantum_peft(config: QuantumPeftConfig, adapted: Any) -> dict[str, Any]:
    """Quantum-PEFT's fields of a Plan; `adapted` is the stock LoRA on the meta device."""
    inner = adapted.get_base_model()
    matrices, notes = _matrices(inner)
    layout = Layout.of(config, matrices)
    if config.frames is not None:
        needed = {matrices[i].name: part.inner for part in layout.parts for i in part.matrices}
        config.frame_file().check_has(needed)
    notes += _remarks(config, layout)
    factors = _factors(config, layout)
    parts = {
        "angles": 0 if config.freeze_angles else count_drawn(config, layout),
        "lambda": 0 if config.family == "core" else sum(m.rank for m in matrices),
        "gains": sum(slot.shape.numel() for slot in gain_slots(inner, "default")),
    }
    generated = layout.size + parts["gains"]
    lora_parameters = sum(p.numel() for n, p in inner.named_parameters() if p.requires_grad and ".lora_" in n)
    parts["other"] = count_trainable(adapted) - lora_parameters - parts["gains"]
    trainable, lora = sum(parts.values()), sum(m.d_out + m.d_in for m in matrices)
    return {
        "method": "quantum_peft",
        "trainable": trainable,
        "trainable_parts": parts,
        "acting": _acting(config, factors, parts),
        "deployed": generated + parts["other"],
        "stored_bytes": _stored(config, layout, factors, parts),
        "exported_bytes": (generated + parts["other"]) * BYTES,
        "needs_qpeft": True,
        "lora_rank_1": lora,
        **_circuits(config, factors),
        "rank_bound": max(m.rank for m in matrices),
        "notes": [*notes, *_notes(config, factors, parts, generated, lora)],
    }


def _matrices(inner: nn.Module) -> tuple[list[Matrix], list[str]]:
    """The adapted matrices, each weight once, and a note for each shared weight."""
    matrices: list[Matrix] = []
    names: dict[int, str] = {}
    notes = []
    for name, layer in inner.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        check_is_matrix(base, name)
        if (first := names.setdefault(id(base.weight), name)) != name:
            notes.append(f"{name} shares its weight with {first}, which is adapted once")
            continue
        matrices.append(Matrix(name, layer.out_features, layer.in_features, layer.r["default"], 1.0))  # type: ignore[arg-type]
    return matrices, notes


def _factors(config: QuantumPeftConfig, layout: Layout) -> list[_Factors]:
    count = BANKS[config.family].count
    return [_Factors(len(names), *key, count(config, *key)) for key, names in layout.banks.items()]


def _remarks(config: QuantumPeftConfig, layout: Layout) -> list[str]:
    """The warnings of the banks, of which one with a single factor is built for each width and rank."""
    init = SeededInit(config.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for (width, rank), names in layout.banks.items():
            BANKS[config.family](config, names[:1], width, rank, init)
    return [str(warning.message) for warning in caught]


def _acting(config: QuantumPeftConfig, factors: list[_Factors], parts: dict[str, int]) -> int | None:
    """Parameters with an effect; None for controls without a known count."""
    total = sum(parts.values())
    if config.freeze_angles or config.family in ("lie", "core"):
        return total
    if config.family == "pauli" and config.entangler == "cz":
        return total - parts["angles"] + sum(f.n * _acting_angles(config, f) for f in factors)
    return None


def _acting_angles(config: QuantumPeftConfig, factor: _Factors) -> int:
    assert config.columns is not None
    return count_acting(factor.width, config.n_layers, config.construction, config.columns, factor.rank)


def _stored(config: QuantumPeftConfig, layout: Layout, factors: list[_Factors], parts: dict[str, int]) -> int:
    stored = BYTES * parts["other"]
    for name in ("lambda", "gains"):
        stored += _quantized([(parts[name],)], config.lambda_bits, config.group_size)
    if not config.freeze_angles:
        stored += _quantized([(f.n, f.p) for f in factors], config.bits, config.group_size)
    if config.follows_gradient and config.frames is None and config.store_frames:
        stored += _FRAME_BYTES * sum(len(part.matrices) * part.width * part.inner for part in layout.parts)
    return stored


def _quantized(shapes: list[tuple[int, ...]], bits: int | None, group_size: int) -> int:
    """Bytes of tensors of these shapes, as they are stored."""
    if bits is None:
        return BYTES * sum(map(math.prod, shapes))
    sizes = (stored_sizes(shape, bits, group_size) for shape in shapes)
    return sum(codes + _HEADER_BYTES * groups for codes, groups in sizes)


def _circuits(config: QuantumPeftConfig, factors: list[_Factors]) -> dict[str, int]:
    """The number of circuits, and the wires of the largest."""
    if config.family != "pauli":
        return {}
    qubits = (column_qubits(f.width, config.construction) for f in factors)
    return {"n_circuits": sum(f.n for f in factors), "n_qubits": max(qubits)}


def _notes(
    config: QuantumPeftConfig, factors: list[_Factors], parts: dict[str, int], generated: int, lora: int
) -> list[str]:
    notes: list[str] = []
    trainable, acting = sum(parts.values()), _acting(config, factors, parts)
    if acting is not None and acting < trainable:
        idle = trainable - acting
        notes.append(f"{idle:,} of {parts['angles']:,} angles have no effect: over-parametrized")
    if trainable - parts["other"] >= generated:
        notes.append(
            f"{trainable - parts['other']:,} trained parameters for {generated:,} generated: not a compression"
        )
    if lora <= trainable:
        notes.append(f"LoRA of rank 1 on the same modules trains {lora:,} parameters, within this budget")
    return notes
