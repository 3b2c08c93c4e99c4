from .amplitude import amplitude_expectations, amplitude_probabilities, amplitude_qubits
from .ansatz import Ansatz, dead_angles, register_ansatz
from .circuit import Gate
from .columns import basis_columns
from .counting import count_angles
from .exact import exact_probabilities
from .gates import gate_probabilities
from .ladder import probabilities, probabilities_slice
from .lie import lie_columns
from .orthogonal import orthogonal_columns
from .two_design import two_design_columns

__all__ = [
    "Ansatz",
    "Gate",
    "amplitude_expectations",
    "amplitude_probabilities",
    "amplitude_qubits",
    "basis_columns",
    "count_angles",
    "dead_angles",
    "exact_probabilities",
    "gate_probabilities",
    "lie_columns",
    "orthogonal_columns",
    "probabilities",
    "probabilities_slice",
    "register_ansatz",
    "two_design_columns",
]
