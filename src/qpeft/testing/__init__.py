"""Public contracts: what whoever adds a part to qpeft can run in a test of their own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpeft.testing.adapter import adapter_contract as adapter_contract
    from qpeft.testing.ansatz import ansatz_contract as ansatz_contract
    from qpeft.testing.generator import generator_contract as generator_contract

__all__ = ["adapter_contract", "ansatz_contract", "generator_contract"]


def __getattr__(name: str) -> Any:
    """Each from its own module: a circuit is tested without PEFT."""
    if name not in __all__:
        raise AttributeError(f"module 'qpeft.testing' has no attribute '{name}'")
    return getattr(import_module(f"qpeft.testing.{name.removesuffix('_contract')}"), name)
