"""Measurements of circuits and adapters, as functions; `diagnose` runs all of them.

Circuits: is it random, redundant, trainable, does it reach all states, is it entangled? Trained adapters: did the
angles move, how many directions are generated, does the circuit matter? Names that need peft are imported lazily.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qpeft.diagnostics.effective_rank import EffectiveRank, effective_rank
from qpeft.diagnostics.entanglement import Entanglement, meyer_wallach
from qpeft.diagnostics.expressibility import Expressibility, expressibility
from qpeft.diagnostics.gradient_variance import GradientVariance, gradient_variance
from qpeft.diagnostics.haar import haar_states
from qpeft.diagnostics.porter_thomas import PorterThomas, porter_thomas
from qpeft.diagnostics.redundancy import Redundancy, redundancy
from qpeft.diagnostics.states import circuit_states, random_angles, random_probabilities, random_states

if TYPE_CHECKING:
    from qpeft.diagnostics.diagnosis import diagnose as diagnose
    from qpeft.diagnostics.finding import Diagnosis as Diagnosis
    from qpeft.diagnostics.movement import AngleMovement as AngleMovement
    from qpeft.diagnostics.movement import angle_movement as angle_movement
    from qpeft.diagnostics.page import write_page as write_page
    from qpeft.diagnostics.retraining import CircuitMatters as CircuitMatters
    from qpeft.diagnostics.retraining import circuit_matters as circuit_matters
    from qpeft.diagnostics.target import of_config as of_config
    from qpeft.diagnostics.target import of_folder as of_folder

_HOME = {
    "AngleMovement": "qpeft.diagnostics.movement",
    "CircuitMatters": "qpeft.diagnostics.retraining",
    "Diagnosis": "qpeft.diagnostics.finding",
    "angle_movement": "qpeft.diagnostics.movement",
    "circuit_matters": "qpeft.diagnostics.retraining",
    "diagnose": "qpeft.diagnostics.diagnosis",
    "of_config": "qpeft.diagnostics.target",
    "of_folder": "qpeft.diagnostics.target",
    "write_page": "qpeft.diagnostics.page",
}

__all__ = [
    "AngleMovement",
    "CircuitMatters",
    "Diagnosis",
    "EffectiveRank",
    "Entanglement",
    "Expressibility",
    "GradientVariance",
    "PorterThomas",
    "Redundancy",
    "angle_movement",
    "circuit_matters",
    "circuit_states",
    "diagnose",
    "effective_rank",
    "expressibility",
    "gradient_variance",
    "haar_states",
    "meyer_wallach",
    "of_config",
    "of_folder",
    "porter_thomas",
    "random_angles",
    "random_probabilities",
    "random_states",
    "redundancy",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qpeft.diagnostics' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
