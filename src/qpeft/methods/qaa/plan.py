"""QAA's counts."""

from __future__ import annotations

from typing import Any

from qpeft.circuits import amplitude_qubits, dead_angles
from qpeft.core.adapter_form import count_trainable
from qpeft.methods.counting import BYTES
from qpeft.methods.qaa.config import QAAConfig
from qpeft.methods.qaa.layer import QAALayer


def count_qaa(config: QAAConfig, adapted: Any) -> dict[str, Any]:
    """The fields of a Plan that are QAA's own; `adapted` is the model on the meta device."""
    layers = [module for module in adapted.modules() if isinstance(module, QAALayer)]
    parts = {"angles": 0, "V": 0, "c": 0}
    for layer in layers:
        branch: Any = layer.qaa_branch["default"]
        parts["V"] += 0 if branch.V is None else branch.V.numel()
        parts["c"] += 0 if branch.c is None else branch.c.numel()
    total = count_trainable(adapted)
    own = sum(p.numel() for n, p in adapted.named_parameters() if ".qaa_branch." in n)
    parts["angles"] = own - parts["V"] - parts["c"]
    circuits = _circuits(config, layers)
    dead = sum(dead_angles(config.ansatz, n, config.n_layers) for n in circuits)
    return {
        "method": "qaa",
        "trainable": total,
        "trainable_parts": {**parts, "other": total - own},
        "deployed": total,
        "stored_bytes": total * BYTES,
        "exported_bytes": None,
        "needs_qpeft": True,
        "n_qubits": max(circuits, default=None),
        "n_circuits": len(circuits) or None,
        "dead_angles": dead if circuits else None,
        "notes": _notes(config, circuits, dead),
    }


def _circuits(config: QAAConfig, layers: list[QAALayer]) -> list[int]:
    """The number of qubits of each circuit."""
    if config.feature_source != "qnn":
        return []
    widths = [layer.in_features for layer in layers]
    return [amplitude_qubits(width) for width in (set(widths) if config.share_circuit else widths)]


def _notes(config: QAAConfig, circuits: list[int], dead: int) -> list[str]:
    notes = ["the update depends on the input: it cannot be merged into the base, nor exported as a stock PEFT adapter"]
    if config.feature_source not in ("none", "linear"):
        notes.append("the features are the same for x and -x: no linear change of centered inputs can be learned")
    if dead:
        of_each = f", {circuits[0]} in each circuit" if len({*circuits}) == 1 and len(circuits) > 1 else ""
        notes.append(f"{dead} angles of the last RZ block have no effect{of_each}")
    if config.readout == "probs" and config.feature_source != "none":
        notes.append("readout probs trains about as many parameters as the full weights, or more")
    if config.feature_source != "qnn":
        notes.append(f"feature_source {config.feature_source} is a control: there is no circuit")
    return notes
