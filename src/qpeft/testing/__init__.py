"""Public contracts: what whoever adds a part to qpeft can run in a test of their own."""

from qpeft.testing.ansatz import ansatz_contract

__all__ = ["ansatz_contract"]
