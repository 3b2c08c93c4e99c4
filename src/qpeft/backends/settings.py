"""The settings of a backend, validated before any work; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from qpeft.checks import check_fields, option
from qpeft.errors import ConfigError

GRADIENTS = ("auto", "adjoint", "parameter-shift", "spsa")


@dataclass(kw_only=True)
class BackendSettings:
    """The backend of a run's circuits; fields are named as the arguments of `qpeft.set_backend`."""

    backend: str = option(
        "exact",
        "Where QPA's circuits run: exact; pennylane:DEVICE, such as pennylane:lightning.qubit; qiskit:aer or "
        "qiskit:statevector; or FILE.py:NAME, your own device or sampler, or a function of the number of qubits "
        "that returns one.",
    )
    shots: int | None = option(
        None, "Shots of each circuit. Default: exact probabilities, or the device's own shots.", at_least=1, below=2**63
    )
    gradient: str = option(
        "auto",
        "Rule for the gradient of the angles; auto: adjoint where the backend has it and shots is not set, "
        "parameter-shift otherwise.",
        choices=GRADIENTS,
    )
    noise: float = option(
        0.0,
        "Simulated depolarising noise after each two-qubit gate, a tenth of it after each one-qubit gate; with "
        "pennylane:default.mixed or qiskit:aer.",
        at_least=0,
        below=1,
    )
    shot_budget: int | None = option(None, "Maximum number of shots of the whole run.", at_least=1, below=2**63)
    smoothing: float = option(0.0, "Counts added to every outcome, so that no probability is 0.", at_least=0)

    @property
    def is_usual(self) -> bool:
        """Whether all fields have their defaults: the exact simulator with adjoint gradients."""
        return self == BackendSettings()


def backend_settings(given: dict[str, Any]) -> BackendSettings:
    """Settings from a dictionary. Raises ConfigError for an unknown field or a value out of range."""
    known = [f.name for f in fields(BackendSettings)]
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown backend setting '{name}'; choose one of {', '.join(known)}")
    settings = BackendSettings(**given)
    check_fields(settings, skip=("backend",))
    return settings
