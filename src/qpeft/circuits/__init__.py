"""Quantum circuits as data, and their exact simulation in plain torch."""

from qpeft.circuits.ansatz import Ansatz, Gate, count_angles
from qpeft.circuits.ladder import probabilities

__all__ = ["Ansatz", "Gate", "count_angles", "probabilities"]
