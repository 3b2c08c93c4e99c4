"""Counts of adapters whose method has no counts of its own: what they train, and what is in their files."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftType, get_peft_model_state_dict

from qpeft.core.plan_result import BYTES
from qpeft.methods.registry import find_by_config


def count_stock(config: PeftConfig, adapted: Any) -> dict[str, Any]:
    """The fields of a Plan that a stock adapter has; `adapted` is the model on the meta device."""
    total, stored = sum(p.numel() for p in adapted.parameters() if p.requires_grad), stored_numbers(adapted)
    is_prompt = adapted.active_peft_config.is_prompt_learning  # what an encoder makes of it is kept, not the encoder
    return {
        "method": str(getattr(config.peft_type, "value", config.peft_type)).lower(),
        "trainable": total,
        "trainable_parts": {"adapter": total},
        "deployed": stored if is_prompt else total,
        "stored_bytes": stored * BYTES,
        "exported_bytes": stored * BYTES,
        "needs_qpeft": False,
    }


def count_nonlinear(config: PeftConfig, adapted: Any) -> dict[str, Any]:
    """As `count_stock`, of an adapter that stock PEFT does not have and that no matrix equals."""
    method = find_by_config(config)
    assert method is not None
    return {
        **count_stock(config, adapted),
        "method": method.key,
        "exported_bytes": None,
        "needs_qpeft": True,
        "notes": ["not linear: it cannot be merged into the base, nor exported as a stock PEFT adapter"],
    }


def stored_numbers(adapted: Any) -> int:
    """Numbers in a stock adapter's file.

    Some methods store more than they train, VeRA its projections; a prompt is stored as what its encoder makes of it.
    """
    config: Any = adapted.active_peft_config
    if not config.is_prompt_learning:
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        return sum(tensor.numel() for tensor in state.values())
    trained_whole = sum(p.numel() for name, p in adapted.named_parameters() if ".modules_to_save." in name)
    is_prefix = config.peft_type == PeftType.PREFIX_TUNING
    a_token = config.token_dim * (2 * config.num_layers if is_prefix else config.num_transformer_submodules)
    return config.num_virtual_tokens * a_token + trained_whole
