"""The interface of a backend, which runs a circuit at a batch of angles as one job; exact
simulation.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft.errors import ConfigError, needs
from qpeft.user_code import errors_as, execute, is_file

Numbers = NDArray[np.float64]

# packages, each with a module here that has `by_name(name, n_qubits, noise)`: their classes of
# devices, and ours
_TOOLS = {"pennylane": ("Device", "PennyLaneBackend"), "qiskit": ("BaseSamplerV2", "QiskitBackend")}


class Backend:
    """Runs circuits. One call of `run` is one job for a batch of any size.

    A backend stores the object that the user gave (a device, a sampler) and nothing of any model.
    """

    name: str  #: shown to the user, for example "exact", "lightning.qubit"
    has_exact: bool = False  #: whether it returns exact probabilities, without shots
    has_backprop: bool = False  #: whether it has `differentiable`
    is_simulator: bool = False  #: whether its only cost is computing time on this machine

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        """Probabilities (B, D) of the D = 2^N basis states, wire 0 the most significant bit.

        Args:
            ansatz: The circuit, started in `|0...0>`.
            angles: Radians, `(B, *ansatz.angle_shape)`.
            shots: Number of shots of each of the B circuits, for relative frequencies; None: exact
                probabilities.
            seed: Seed of the counts where the backend samples them itself. A user's device has its
                own seed.
        """
        raise NotImplementedError

    def differentiable(self, ansatz: Ansatz, angles: Tensor) -> Tensor:
        """Exact probabilities (B, D) at float64 angles `(B, *ansatz.angle_shape)`, with a gradient:
        optional, for simulators.
        """
        raise NotImplementedError

    def check(self, ansatz: Ansatz, shots: int | None) -> None:
        """Raise an error, before any work, if this circuit cannot run here (too few wires, an
        unsupported gate).
        """


class ExactBackend(Backend):
    """Any circuit on qpeft's own simulator, float64.

    With shots the counts are Multinomial(shots, p), drawn from `seed`: the same angles and seed
    give the same counts.
    """

    name = "exact"
    has_exact = is_simulator = True

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        with torch.no_grad():
            exact = exact_probabilities(ansatz, torch.from_numpy(angles)).numpy()
        if shots is None:
            return exact
        random = np.random.Generator(np.random.Philox(seed))
        return random.multinomial(shots, exact / exact.sum(axis=1, keepdims=True)) / shots


def as_backend(given: Any, n_qubits: int, noise: float = 0.0) -> Backend:
    """The backend for an object or a name.

    Args:
        given: A Backend, a PennyLane device, a Qiskit sampler, or a name, see
            `BackendSettings.backend`.
        n_qubits: Wires of a device that is created here.
        noise: Strength of simulated depolarising noise, from 0 to below 1, for named simulators.

    Raises:
        ConfigError: Another object or name, a missing extra, or noise on a backend that does not
            support it.
    """
    tool, _, name = given.partition(":") if isinstance(given, str) else ("", "", "")
    if tool in _TOOLS and name:
        library = _TOOLS[tool][1].removesuffix("Backend")
        with (
            needs(f"backend {given}", library),
            errors_as(f"backend {given}:", ModuleNotFoundError),
        ):
            return import_module(f"qpeft.backends.{tool}").by_name(name, n_qubits, noise)
    if noise:
        raise ConfigError(
            "noise is for pennylane:default.mixed; your own device has its noise model"
        )
    if given == "exact":
        return ExactBackend()
    device: Any = given
    if is_file(given):  # credentials, if any, stay in it
        module = execute(given, "backend")
        with errors_as(f"backend {given}:"):
            made: Any = getattr(module, given.rpartition(":")[2])
            is_factory = callable(made) and not hasattr(made, "run")
            device = made(n_qubits) if is_factory else made
    if isinstance(device, Backend):
        return device
    parents = type(device).__mro__
    kinds = {(parent.__module__.partition(".")[0], parent.__name__) for parent in parents}
    for tool, (kind, backend) in _TOOLS.items():
        if (tool, kind) in kinds:
            return getattr(import_module(f"qpeft.backends.{tool}"), backend)(device)
    raise ConfigError(
        f"unknown backend {device!r}; give a PennyLane device, a Qiskit sampler (BaseSamplerV2), a"
        " qpeft.backends.Backend, or a name: exact, pennylane:DEVICE, qiskit:aer,"
        " qiskit:statevector, or FILE.py:NAME"
    )
