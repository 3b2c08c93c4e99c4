"""Which adapters stock PEFT can hold."""

from __future__ import annotations

from typing import Any


def own_kind(model: Any) -> str | None:
    """What this PeftModel's adapter is called if stock PEFT has none like it; None if it has.

    Whoever writes the adapter's numbers: the tuner says it by its attribute `own_kind`.
    """
    return getattr(type(getattr(model, "base_model", None)), "own_kind", None)


def has_stock_form(model: Any) -> bool:
    """Whether stock PEFT has an adapter like this PeftModel's."""
    return own_kind(model) is None
