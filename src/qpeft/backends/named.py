"""Backends by what the user has: a name, a PennyLane device, a Qiskit sampler, a Backend."""

from __future__ import annotations

from typing import Any

from qpeft.backends.backend import Backend
from qpeft.backends.exact import ExactBackend
from qpeft.errors import ConfigError


def as_backend(given: Any) -> Backend:
    """The backend for what was given to `set_backend`. Raises ConfigError for anything else."""
    if isinstance(given, Backend):
        return given
    if given == "exact":
        return ExactBackend()
    packages = {kind.__module__.partition(".")[0] for kind in type(given).__mro__}
    if "pennylane" in packages:
        from qpeft.backends.pennylane import PennyLaneBackend

        return PennyLaneBackend(given)
    if "qiskit" in packages:
        from qpeft.backends.qiskit import QiskitBackend

        return QiskitBackend(given)
    raise ConfigError(
        f"unknown backend {given!r}; give 'exact', a PennyLane device, a Qiskit sampler (BaseSamplerV2), or a "
        "qpeft.backends.Backend"
    )
