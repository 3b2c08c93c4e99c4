"""Circuits on any PennyLane device: simulators, noise models, hardware plugins."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags_array

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, missing_extra, setting

try:
    import pennylane as qml
    from pennylane.devices import Device, ExecutionConfig
    from pennylane.tape import QuantumScript, make_qscript
except ModuleNotFoundError as error:
    raise missing_extra("a PennyLane device", "PennyLane") from error

_NOISY = "default.mixed"
_SEEDED = ("default.qubit", _NOISY, "lightning.qubit", "lightning.kokkos", "lightning.gpu")
_PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


class PennyLaneBackend(Backend):
    """Runs circuits on a user's device, with all angles of a job in one execution.

    The circuit uses the first N wires of the device, with any labels. Requested shots replace those of the
    device. Without shots, a simulator's gradient is PennyLane's backpropagation or adjoint method, whichever the device
    supports. Exceptions of the device are passed on unchanged.

    Raises ConfigError for anything but a PennyLane device.
    """

    def __init__(self, device: Device) -> None:
        if not isinstance(device, Device):
            raise ConfigError(f"a PennyLane device is needed, such as qml.device('lightning.qubit'), got {device!r}")
        self.device = device
        self.name = device.name
        self.default_shots = device.shots.total_shots
        self.is_simulator = device.name.startswith(("default.", "lightning."))
        self.has_exact = self._refusal(QuantumScript([], [qml.probs(self._wires(1))])) is None
        self._derivative = _derivative(device)
        self.has_adjoint = self._derivative is not None

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        # PennyLane contracts noise channels several times faster in torch than in NumPy
        through_torch = self._derivative == "backprop"
        tape = self._tape(ansatz, torch.from_numpy(angles) if through_torch else angles, shots)
        program, config = self.device.preprocess(ExecutionConfig(interface="torch" if through_torch else "numpy"))
        tapes, gather = program([tape])
        found = gather(self.device.execute(tapes, config))
        return np.asarray(found[0], np.float64).reshape(len(angles), -1)

    def adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        rule = self._by_backprop if self._derivative == "backprop" else self._by_adjoint
        return rule(ansatz, angles, weights)

    def _by_backprop(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        leaf = torch.from_numpy(angles).requires_grad_()
        with torch.enable_grad():
            tape = self._tape(ansatz, leaf, None)
            (p,) = qml.execute([tape], self.device, diff_method="backprop", interface="torch")
            value = torch.from_numpy(weights) @ p
        return torch.autograd.grad(value, leaf)[0].numpy()

    def _by_adjoint(self, ansatz: Ansatz, angles: Numbers, weights: Numbers) -> Numbers:
        """PennyLane supports only expectations; a weighted sum of probabilities is that of a diagonal observable."""
        measured = [qml.expval(self._diagonal(weights))]

        def value(theta: Any) -> Any:
            tape = self._tape(ansatz, theta, None).copy(measurements=measured)
            return qml.execute([tape], self.device, diff_method="adjoint", interface="autograd")[0]

        # autograd, because PennyLane rounds lightning's results to float32 in its torch interface
        return np.asarray(qml.grad(value)(qml.numpy.array(angles, requires_grad=True)))

    def check(self, ansatz: Ansatz) -> None:
        wires = self.device.wires
        if wires and len(wires) < ansatz.n_qubits:
            raise ConfigError(
                f"{self.name} has {len(wires)} wires and the circuit needs {ansatz.n_qubits}; create the device with "
                f"wires={ansatz.n_qubits}, or use a larger {setting('chunk_size')} (fewer qubits)"
            )
        shots = None if self.has_exact else self.default_shots or 1
        refusal = self._refusal(self._tape(ansatz, np.zeros((2, *ansatz.angle_shape)), shots))
        if refusal is not None:
            raise ConfigError(f"{self.name} cannot run {ansatz.name}: {refusal}") from refusal

    def _tape(self, ansatz: Ansatz, angles: Any, shots: int | None) -> QuantumScript:
        wires = self._wires(ansatz.n_qubits)

        def circuit() -> None:
            ansatz.to_pennylane()(angles, wires)
            qml.probs(wires)

        return make_qscript(circuit, shots=shots)()

    def _diagonal(self, weights: Numbers) -> qml.SparseHamiltonian:
        """On all wires of the device: lightning requires this of a sparse observable."""
        wires = self.device.wires or self._wires(int(np.log2(len(weights))))
        repeated = np.repeat(weights, 2 ** len(wires) // len(weights))
        return qml.SparseHamiltonian(csr_matrix(diags_array(repeated)), wires=wires)

    def _wires(self, n_qubits: int) -> list[Any]:
        return list(self.device.wires or range(n_qubits))[:n_qubits]

    def _refusal(self, tape: QuantumScript) -> Exception | None:
        """The error with which PennyLane's preprocessing rejects the tape, or None; nothing is run."""
        try:
            self.device.preprocess()[0]([tape])
        except Exception as error:  # each device has its own
            return error
        return None


class _Seeded(PennyLaneBackend):
    """A simulator created for every job, so that its counts depend on the job's seed only."""

    def __init__(self, make: Callable[[int], Device]) -> None:
        super().__init__(make(0))
        self._make = make

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        if shots is not None:
            self.device = self._make(seed)
        return super().run(ansatz, angles, shots, seed)


def backend_by_name(name: str, n_qubits: int, noise: float) -> PennyLaneBackend:
    """An installed device, such as "lightning.qubit", with `n_qubits` wires; simulators sample with the job's seed.

    With `noise` p, which needs "default.mixed", each one-qubit gate is followed by one of the three Pauli errors with
    probability p / 10 and each two-qubit gate by one of the fifteen with probability p.

    Raises:
        ConfigError: An unknown name, a device that needs more arguments than its wires, or unsupported noise.
    """
    installed = sorted(entry.name for entry in entry_points(group="pennylane.plugins"))
    if name not in installed:
        raise ConfigError(f"unknown PennyLane device '{name}'; installed: {', '.join(installed)}")
    if noise and name != _NOISY:
        raise ConfigError(f"{name} does not simulate noise; use {_NOISY}")
    try:
        if name in _SEEDED:
            return _Seeded(lambda seed: _noisy(qml.device(name, wires=n_qubits, seed=seed), noise))
        made = PennyLaneBackend(qml.device(name, wires=n_qubits))
        if made.is_simulator:  # some cannot run such circuits, which shows only in a run
            made.run(
                Ansatz("ry_ladder", n_qubits, 1), np.zeros((1, 1, n_qubits)), None if made.has_exact else 1, seed=0
            )
        return made
    except Exception as error:  # each device has its own
        raise ConfigError(
            f"the PennyLane device '{name}' with {n_qubits} wires cannot run the circuit: {error}. Create the "
            "device yourself; on the command line, give it as FILE.py:NAME"
        ) from error


def _noisy(device: Device, noise: float) -> Any:
    return qml.add_noise(device, _depolarizing(noise)) if noise else device


def _depolarizing(noise: float) -> qml.NoiseModel:
    pairs = [np.kron(first, second) for first, second in product(_PAULIS, repeat=2)]  # the identity first
    errors = [np.sqrt(1 - noise) * pairs[0], *(np.sqrt(noise / 15) * pair for pair in pairs[1:])]

    def after_one(op: Any, **_: Any) -> None:
        qml.DepolarizingChannel(noise / 10, wires=op.wires)

    def after_two(op: Any, **_: Any) -> None:
        qml.QubitChannel(errors, wires=op.wires)

    on_one = qml.BooleanFn(lambda op: len(op.wires) == 1)
    on_two = qml.BooleanFn(lambda op: len(op.wires) == 2)
    return qml.NoiseModel({on_one: after_one, on_two: after_two})


def _derivative(device: Device) -> str | None:
    """PennyLane's exact method for this device's derivatives; backpropagation is faster where both exist."""
    methods = ("backprop", "adjoint")
    return next((m for m in methods if device.supports_derivatives(ExecutionConfig(gradient_method=m))), None)
