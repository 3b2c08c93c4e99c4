"""SoRA's counts: those of the initial LoRA, which are the maximum of an export."""

from __future__ import annotations

from typing import Any

from qpeft.methods.counting import BYTES
from qpeft.methods.sora.config import SoRAConfig
from qpeft.methods.sora.layer import GATE


def count_sora(config: SoRAConfig, adapted: Any) -> dict[str, Any]:
    """SoRA's fields of a Plan; `adapted` is the model on the meta device."""
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
        "notes": ["deployed and exported are maxima: an export leaves out ranks whose gate is zero"]
        if config.shrink_budget or config.sparse_lambda
        else ["nothing shrinks the gates, so every rank remains"],
    }
