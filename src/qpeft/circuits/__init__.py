"""Quantum circuits as data, and their exact simulation in plain torch."""

from qpeft.circuits.amplitude import amplitude_expectations, amplitude_probabilities, amplitude_qubits
from qpeft.circuits.ansatz import Ansatz, dead_angles, register_ansatz
from qpeft.circuits.circuit import Gate
from qpeft.circuits.columns import basis_columns
from qpeft.circuits.counting import count_angles
from qpeft.circuits.gates import gate_probabilities
from qpeft.circuits.ladder import probabilities, probabilities_slice
from qpeft.circuits.lie import lie_columns
from qpeft.circuits.orthogonal import orthogonal_columns
from qpeft.circuits.two_design import two_design_columns

__all__ = [
    "Ansatz",
    "Gate",
    "amplitude_expectations",
    "amplitude_probabilities",
    "amplitude_qubits",
    "basis_columns",
    "count_angles",
    "dead_angles",
    "gate_probabilities",
    "lie_columns",
    "orthogonal_columns",
    "probabilities",
    "probabilities_slice",
    "register_ansatz",
    "two_design_columns",
]
