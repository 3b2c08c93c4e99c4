"""Contract tests for your own ansatz, generator or adapter."""

from qpeft.testing.adapter import adapter_contract
from qpeft.testing.ansatz import ansatz_contract
from qpeft.testing.generator import generator_contract

__all__ = ["adapter_contract", "ansatz_contract", "generator_contract"]
