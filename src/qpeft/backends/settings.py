"""The settings of a backend; importable without torch and NumPy, because the command line reads
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import check_fields, option


@dataclass(kw_only=True)
class BackendSettings:
    """The backend of a run's circuits; fields are named as the arguments of `qpeft.set_backend`.

    Raises ConfigError if a value is out of range.
    """

    backend: str = option(
        "exact",
        "Where QPA's circuits run: exact; pennylane:DEVICE, such as pennylane:lightning.qubit;"
        " qiskit:aer or qiskit:statevector; or FILE.py:NAME, your own device or sampler, or a"
        " function of the number of qubits that returns one.",
    )
    shots: int | None = option(
        None, "Shots of each circuit. Default: exact probabilities.", at_least=1, below=2**63
    )
    noise: float = option(
        0.0,
        "Depolarizing noise after each two-qubit gate, on pennylane:default.mixed.",
        at_least=0,
        below=1,
    )
    shot_budget: int | None = option(
        None, "Maximum number of shots of the whole run.", at_least=1, below=2**63
    )

    def __post_init__(self) -> None:
        check_fields(self, skip=("backend",))  # which may also be an object
