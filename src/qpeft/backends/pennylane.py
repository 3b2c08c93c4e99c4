"""Any PennyLane device: simulators, noise models, hardware plugins; the object that the user made, never credentials."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from scipy.sparse import diags_array

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, missing_extra

try:
    import pennylane as qml
except ModuleNotFoundError as error:
    raise missing_extra("a PennyLane device", "PennyLane") from error


class PennyLaneBackend(Backend):
    """Runs circuits on `device`, all angles of a job in one execution.

    The circuit takes the first N of the device's wires, whatever their labels. Shots that are asked for replace those
    of the device. What the device raises comes out unchanged.
    """

    def __init__(self, device: Any) -> None:
        if not isinstance(device, qml.devices.Device):
            raise ConfigError(f"a PennyLane device is needed, such as qml.device('lightning.qubit'); got {device!r}")
        self.device = device
        self.name = device.name
        self.default_shots = device.shots.total_shots
        self.is_simulator = device.name.startswith(("default.", "lightning."))
        self.has_exact = self._refusal(_read(qml.probs, [0], None)) is None
        self.has_adjoint = device.supports_derivatives(qml.devices.ExecutionConfig(gradient_method="adjoint"))

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        tape = self._tape(ansatz, angles, shots)
        (found,) = qml.execute([tape], self.device)
        return np.asarray(found, np.float64).reshape(len(angles), -1)
