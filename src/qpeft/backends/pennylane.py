"""Circuits on any PennyLane device: simulators, noise models, hardware plugins."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pennylane as qml
import torch
from pennylane.devices import Device, ExecutionConfig
from pennylane.tape import QuantumScript, make_qscript
from torch import Tensor

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz, to_pennylane
from qpeft.errors import ConfigError

_NOISY = "default.mixed"
_SEEDED = ("default.qubit", _NOISY, "lightning.qubit", "lightning.kokkos", "lightning.gpu")
_PAULIS = np.array(
    [
        [[1, 0], [0, 1]],
        [[0, 1], [1, 0]],
        [[0, -1j], [1j, 0]],
        [[1, 0], [0, -1]],
    ]
)


class PennyLaneBackend(Backend):
    """Runs circuits on a user's device, with all angles of a job in one execution.

    The circuit uses the first N wires of the device, with any labels. Without shots, a simulator
    that supports PennyLane's `diff_method="backprop"` trains with it.

    Args:
        device: The user's device.
        make: Makes the simulator of a job with shots from its seed, so that a resumed run draws the
            same counts.
    """

    has_exact = True  # or `check` refuses

    def __init__(self, device: Device, make: Callable[[int], Device] | None = None) -> None:
        self.device = device
        self.name = device.name
        self._make = make
        self.is_simulator = device.name.startswith(("default.", "lightning."))
        self.has_backprop = device.supports_derivatives(ExecutionConfig(gradient_method="backprop"))

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        if self._make is not None and shots is not None:
            self.device = self._make(seed)
        # torch contracts noise channels faster than NumPy, and with opt_einsum in a better order
        tape = self._tape(ansatz, torch.from_numpy(angles) if self.has_backprop else angles, shots)
        (p,) = qml.execute([tape], self.device, diff_method=None)
        return np.asarray(p, np.float64).reshape(len(angles), -1)

    def differentiable(self, ansatz: Ansatz, angles: Tensor) -> Tensor:
        tape = self._tape(ansatz, angles, None)
        (p,) = qml.execute([tape], self.device, diff_method="backprop")
        return p.reshape(len(angles), -1)

    def check(self, ansatz: Ansatz, shots: int | None) -> None:
        if shots is None and self.device.shots:
            raise ConfigError(f"the device has {self.device.shots}; give their number as shots")
        self.device.preprocess()[0]([self._tape(ansatz, np.zeros((2, *ansatz.angle_shape)), shots)])

    def _tape(self, ansatz: Ansatz, angles: Any, shots: int | None) -> QuantumScript:
        wires = list(self.device.wires or range(ansatz.n_qubits))[: ansatz.n_qubits]

        def circuit() -> None:
            to_pennylane(ansatz)(angles, wires)
            qml.probs(wires)

        return make_qscript(circuit, shots=shots)()


def by_name(name: str, n_qubits: int, noise: float) -> PennyLaneBackend:
    """An installed device, such as "lightning.qubit", with `n_qubits` wires; simulators sample with
    the job's seed.

    With `noise` p, which needs "default.mixed", each one-qubit gate is followed by one of the three
    Pauli errors with probability p / 10 and each two-qubit gate by one of the fifteen with
    probability p.
    """
    if noise and name != _NOISY:
        raise ConfigError(f"{name} does not simulate noise; use {_NOISY}")

    def make(seed: int) -> Any:
        device = qml.device(name, wires=n_qubits, seed=seed)
        return qml.add_noise(device, _depolarizing(noise)) if noise else device

    if name in _SEEDED:
        return PennyLaneBackend(make(0), make)
    return PennyLaneBackend(qml.device(name, wires=n_qubits))


def _depolarizing(noise: float) -> qml.NoiseModel:
    def after(op: Any, **_: Any) -> None:
        # the identity first, then the errors
        words = [reduce(np.kron, word) for word in product(_PAULIS, repeat=len(op.wires))]
        n_errors = len(words) - 1
        p = noise if len(op.wires) == 2 else noise / 10
        weights = np.sqrt([1 - p] + n_errors * [p / n_errors])
        qml.QubitChannel([w * word for w, word in zip(weights, words, strict=True)], wires=op.wires)

    return qml.NoiseModel({qml.BooleanFn(lambda op: len(op.wires) <= 2): after})
