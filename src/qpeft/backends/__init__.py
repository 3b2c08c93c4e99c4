"""Where a circuit's probabilities come from: the exact simulator, shots, PennyLane, Qiskit; and their gradients."""

from qpeft.backends.backend import Backend
from qpeft.backends.exact import ExactBackend
from qpeft.backends.jobs import Jobs
from qpeft.backends.run import CircuitRun

__all__ = ["Backend", "CircuitRun", "ExactBackend", "Jobs"]
