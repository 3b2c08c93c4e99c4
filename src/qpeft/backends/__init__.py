"""Where a circuit's probabilities come from: the exact simulator, shots, PennyLane, Qiskit; and their gradients.

Names load their modules when first used: the command line reads `settings` without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpeft.backends.backend import Backend as Backend
    from qpeft.backends.exact import ExactBackend as ExactBackend
    from qpeft.backends.jobs import Jobs as Jobs
    from qpeft.backends.run import CircuitRun as CircuitRun
    from qpeft.backends.settings import BackendSettings as BackendSettings

_HOME = {
    "Backend": "backend",
    "BackendSettings": "settings",
    "CircuitRun": "run",
    "ExactBackend": "exact",
    "Jobs": "jobs",
}

__all__ = ["Backend", "BackendSettings", "CircuitRun", "ExactBackend", "Jobs"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qpeft.backends' has no attribute '{name}'")
    return getattr(import_module(f"qpeft.backends.{_HOME[name]}"), name)
