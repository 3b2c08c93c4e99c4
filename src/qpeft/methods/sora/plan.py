"""SoRA's counts: those of the LoRA that training begins with, which is what an export can have at most."""

from __future__ import annotations

from typing import Any

from qpeft.methods.counting import BYTES
from qpeft.methods.sora.config import SoRAConfig
from qpeft.methods.sora.layer import GATE


def count_sora(config: SoRAConfig, adapted: Any) -> dict[str, Any]:
    """The fields of a Plan that are SoRA's own; `adapted` is the model on the meta device."""
    trained = [(name, p.numel()) for name, p in adapted.named_parameters() if p.requires_grad]
    gates = sum(n for name, n in trained if f".{GATE}." in name)
    adapter = sum(n for name, n in trained if ".lora_" in name)
    total = sum(n for _, n in trained)
    return {
        "method": "sora",
        "trainable": total,
        "trainable_parts": {"adapter": adapter, "gates": gates, "other": total - adapter - gates},
        "deployed": total - gates,
        "stored_bytes": total * BYTES,
        "exported_bytes": (total - gates) * BYTES,
        "needs_qpeft": True,
        "notes": _notes(config),
    }


def _notes(config: SoRAConfig) -> list[str]:
    if config.shrink_budget == 0 or config.sparse_lambda == 0:
        return ["nothing shrinks the gates, so that every rank stays"]
    return ["deployed and exported at most: ranks whose gate becomes zero are left out of the export"]
