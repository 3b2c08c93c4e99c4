"""Backends by what the user has: a name, a PennyLane device, a Qiskit sampler, a Backend."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from qpeft.backends.backend import Backend
from qpeft.backends.exact import ExactBackend
from qpeft.errors import ConfigError

_NAMES = "exact, pennylane:DEVICE, qiskit:aer, qiskit:statevector, or FILE.py:NAME"


def as_backend(given: Any, n_qubits: int, noise: float = 0.0) -> Backend:
    """The backend for an object or a name, with room for `n_qubits`.

    Args:
        given: A Backend, a PennyLane device, a Qiskit sampler; or a name: `exact`, `pennylane:DEVICE`,
            `qiskit:SAMPLER`, or `FILE.py:NAME` of such an object or of a function of the number of qubits.
        n_qubits: Wires of a device that is made here.
        noise: Strength of simulated depolarising noise, for named simulators.

    Raises:
        ConfigError: nothing of these, a missing extra, or noise where it cannot be had.
    """
    if isinstance(given, str):
        return _by_name(given, n_qubits, noise)
    if noise:
        raise ConfigError("noise is for simulators by name; give a device or sampler of yours its own noise model")
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
        raise ConfigError(f"backend {name} has no simulated noise; use pennylane:default.mixed or qiskit:aer")
    if name == "exact":
        return ExactBackend()
    file, _, attribute = name.rpartition(":")
    if file.endswith(".py"):
        backend = as_backend(_from_file(Path(file).expanduser(), attribute, n_qubits), n_qubits)
        backend.name = f"{backend.name} ({Path(file).name}:{attribute})"
        return backend
    if name.partition(".")[0] in ("default", "lightning"):
        raise ConfigError(f"unknown backend '{name}'; did you mean 'pennylane:{name}'?")
    hint = f"; did you mean '{name}:NAME', what the file calls it?" if name.endswith(".py") else ""
    raise ConfigError(f"unknown backend '{name}'{hint or f'; choose one of {_NAMES}'}")


def _from_file(path: Path, attribute: str, n_qubits: int) -> Any:
    """The user's own object: it holds credentials, if any, and qpeft never sees them."""
    if not path.is_file():
        raise ConfigError(f"backend: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, attribute)
        if callable(found) and not hasattr(found, "run"):  # a function, or a class, that makes the backend
            found = found(n_qubits)
    except Exception as error:  # whatever the user's file does
        raise ConfigError(f"backend {path}:{attribute}: {type(error).__name__}: {error}") from error
    if isinstance(found, str):
        raise ConfigError(f"backend {path}:{attribute} is a text; it must be a device or sampler, or return one")
    return found
