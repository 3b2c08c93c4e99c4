"""Figures about circuits: is one random, redundant, trainable, does it reach all states, is it entangled?"""

from qpeft.diagnostics.entanglement import Entanglement, meyer_wallach
from qpeft.diagnostics.expressibility import Expressibility, expressibility
from qpeft.diagnostics.gradient_variance import GradientVariance, gradient_variance
from qpeft.diagnostics.haar import haar_states
from qpeft.diagnostics.porter_thomas import PorterThomas, porter_thomas
from qpeft.diagnostics.redundancy import Redundancy, redundancy
from qpeft.diagnostics.states import circuit_states, random_angles, random_probabilities, random_states

__all__ = [
    "Entanglement",
    "Expressibility",
    "GradientVariance",
    "PorterThomas",
    "Redundancy",
    "circuit_states",
    "expressibility",
    "gradient_variance",
    "haar_states",
    "meyer_wallach",
    "porter_thomas",
    "random_angles",
    "random_probabilities",
    "random_states",
    "redundancy",
]
