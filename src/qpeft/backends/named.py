"""A backend from what the user gives: a name, a PennyLane device, a Qiskit sampler, a Backend."""

from __future__ import annotations

from typing import Any

from qpeft.backends.backend import Backend, ExactBackend
from qpeft.errors import ConfigError
from qpeft.user_files import errors_as, execute, is_file, without_folder

_NAMES = "exact, pennylane:DEVICE, qiskit:aer, qiskit:statevector, or FILE.py:NAME"


def as_backend(given: Any, n_qubits: int, noise: float = 0.0) -> Backend:
    """The backend for an object or a name, with room for `n_qubits`.

    Args:
        given: A Backend, a PennyLane device, a Qiskit sampler; or a name: `exact`, `pennylane:DEVICE`,
            `qiskit:SAMPLER`, or `FILE.py:NAME` of such an object or of a function of the number of qubits.
        n_qubits: Wires of a device that is created here.
        noise: Strength of simulated depolarising noise, from 0 to below 1, for named simulators.

    Raises:
        ConfigError: Another object or name, a missing extra, or noise on a backend that does not support it.
    """
    if isinstance(given, str):
        return _by_name(given, n_qubits, noise)
    if noise:
        raise ConfigError("noise applies to simulators given by name; add a noise model to your own device or sampler")
    if isinstance(given, Backend):
        return given
    packages = {kind.__module__.partition(".")[0] for kind in type(given).__mro__}
    if "pennylane" in packages:
        from qpeft.backends.pennylane import PennyLaneBackend

        return PennyLaneBackend(given)
    if "qiskit" in packages:
        from qpeft.backends.qiskit import QiskitBackend

        return QiskitBackend(given)
    raise ConfigError(
        f"unknown backend {given!r}; give a PennyLane device, a Qiskit sampler (BaseSamplerV2), a "
        f"qpeft.backends.Backend, or a name: {_NAMES}"
    )


def _by_name(name: str, n_qubits: int, noise: float) -> Backend:
    kind, _, what = name.partition(":")
    if kind == "pennylane" and what:
        from qpeft.backends.pennylane import backend_by_name

        return backend_by_name(what, n_qubits, noise)
    if kind == "qiskit" and what:
        from qpeft.backends.qiskit import simulator_by_name

        return simulator_by_name(what, noise)
    if noise:
        raise ConfigError(f"backend {name} does not simulate noise; use pennylane:default.mixed or qiskit:aer")
    if name == "exact":
        return ExactBackend()
    if is_file(name):
        backend = as_backend(_from_file(name, n_qubits), n_qubits)
        label = f" ({without_folder(name)})"
        backend.name = f"{backend.name.removesuffix(label)}{label}"  # the same object may be given again
        return backend
    if name.partition(".")[0] in ("default", "lightning"):
        raise ConfigError(f"unknown backend '{name}'; did you mean 'pennylane:{name}'?")
    hint = f"; did you mean '{name}:NAME', with the object's name in the file?" if name.endswith(".py") else ""
    raise ConfigError(f"unknown backend '{name}'{hint or f'; choose one of {_NAMES}'}")


def _from_file(name: str, n_qubits: int) -> Any:
    """The user's own object. Credentials, if any, stay in it; qpeft does not read them."""
    module, attribute = execute(name, "backend"), name.rpartition(":")[2]
    with errors_as(f"backend {name}:"):
        found = getattr(module, attribute)
        if callable(found) and not hasattr(found, "run"):  # a function or class that returns the backend
            found = found(n_qubits)
    if isinstance(found, str):
        raise ConfigError(f"backend {name} is a string; it must be a device or sampler, or return one")
    return found
