"""Circuits on a Qiskit sampler: a simulator with or without noise, a fake device, or hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError, missing_extra, setting

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit
    from qiskit.primitives import BaseSamplerV2, BitArray
    from qiskit.transpiler import PassManager
    from qiskit_aer.noise import NoiseModel

_REGISTER = "outcome"
_SIMULATORS = ("qiskit_aer", "fake_provider", "basic_provider")  # in the name of a backend's module


class QiskitBackend(Backend):
    """A Qiskit sampler (`BaseSamplerV2`): StatevectorSampler, Aer's, BackendSamplerV2, IBM Runtime's.

    One call of `run` is one job of one PUB, the circuit with all sets of angles. The circuit is transpiled once, with
    free angles, for the sampler's backend.

    The sampler is used unchanged. With an integer seed, it draws the same random numbers in every job,
    StatevectorSampler even for every circuit, so the noise of the training steps is correlated. Use such a seed to
    repeat a job; for training, set no seed, or give StatevectorSampler a NumPy Generator.

    Args:
        sampler: The user's sampler.
        pass_manager: Replaces Qiskit's preset passes for the sampler's backend.
    """

    def __init__(self, sampler: BaseSamplerV2, pass_manager: PassManager | None = None) -> None:
        from qiskit.primitives import BaseSamplerV2

        if not isinstance(sampler, BaseSamplerV2):
            raise ConfigError(
                "a Qiskit sampler (BaseSamplerV2) is needed, such as qiskit_aer.primitives.SamplerV2(), or "
                f"BackendSamplerV2(backend=...) around a backend; got {sampler!r}"
            )
        self.sampler = sampler
        self._device = _device_of(sampler)
        self._pass_manager = pass_manager
        self._circuits: dict[Ansatz, QuantumCircuit] = {}
        self.name = _name(sampler, self._device)
        self.default_shots = _default_shots(sampler)
        self.is_simulator = self._device is None or any(part in type(self._device).__module__ for part in _SIMULATORS)

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        circuit = self._transpiled(ansatz)
        free = tuple(circuit.parameters)  # the transpiler may have removed angles without effect
        values = angles.reshape(len(angles), -1)[:, [parameter.index for parameter in free]]
        job = self.sampler.run([(circuit, {free: values})], shots=shots)
        return _frequencies(job.result()[0].data[_REGISTER])

    def check(self, ansatz: Ansatz) -> None:
        there = getattr(self._device, "num_qubits", None)
        if there is not None and there < ansatz.n_qubits:
            raise ConfigError(
                f"{self.name} has {there} qubits and the circuit needs {ansatz.n_qubits}; use another device, or a "
                f"larger {setting('chunk_size')} (fewer qubits)"
            )
        from qiskit.exceptions import QiskitError

        try:
            self._transpiled(ansatz)
        except QiskitError as error:
            raise ConfigError(f"{ansatz.name} cannot be transpiled to {self.name}: {error.message}") from error

    def _transpiled(self, ansatz: Ansatz) -> QuantumCircuit:
        if ansatz not in self._circuits:
            self._circuits[ansatz] = self._transpile(_measured(ansatz))
        return self._circuits[ansatz]

    def _transpile(self, circuit: QuantumCircuit) -> QuantumCircuit:
        from qiskit.transpiler import generate_preset_pass_manager

        if self._pass_manager is not None:
            return self._pass_manager.run(circuit)
        if self._device is None:
            return circuit
        return generate_preset_pass_manager(backend=self._device, seed_transpiler=0).run(circuit)


class _Simulator(QiskitBackend):
    """A sampler created for each job with the job's seed, so that a resumed run draws the same counts."""

    def __init__(self, name: str, make: Callable[[int], BaseSamplerV2]) -> None:
        super().__init__(make(0))
        self.name = f"qiskit:{name}"
        self._make = make

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        self.sampler = self._make(seed % 2**63)  # Aer's seeds are signed
        return super().run(ansatz, angles, shots, seed)


def simulator_by_name(name: str, noise: float) -> QiskitBackend:
    """ "aer" or "statevector", whose counts depend on the job's seed.

    With `noise` p, which needs "aer", each one-qubit gate is followed by one of the three Pauli errors with
    probability p / 10 and each two-qubit gate by one of the fifteen with probability p.

    Raises:
        ConfigError: An unknown name, noise that the simulator does not support, or a missing extra.
    """
    if name not in ("aer", "statevector"):
        raise ConfigError(f"unknown Qiskit sampler '{name}'; choose one of aer, statevector, or FILE.py:NAME")
    if noise and name == "statevector":
        raise ConfigError("qiskit:statevector does not simulate noise; use qiskit:aer")
    try:
        if name == "statevector":
            from qiskit.primitives import StatevectorSampler

            # an integer seed would be used again for every circuit of a job
            return _Simulator(name, lambda seed: StatevectorSampler(seed=np.random.default_rng(seed)))
        from qiskit_aer import AerSimulator
        from qiskit_aer.primitives import SamplerV2
    except ModuleNotFoundError as error:
        raise missing_extra(f"backend qiskit:{name}", "Qiskit") from error
    device = AerSimulator(noise_model=_depolarizing(noise) if noise else None)
    return _Simulator(name, lambda seed: SamplerV2.from_backend(device, seed=seed))


def _depolarizing(noise: float) -> NoiseModel:
    from qiskit_aer.noise import NoiseModel, depolarizing_error

    rotations, pairs = ["rx", "ry", "rz"], ["cx", "cz"]
    model = NoiseModel(basis_gates=[*rotations, *pairs])
    # Aer's parameter is the weight of the maximally mixed state, which includes the identity
    model.add_all_qubit_quantum_error(depolarizing_error(4 / 3 * noise / 10, 1), rotations)
    model.add_all_qubit_quantum_error(depolarizing_error(16 / 15 * noise, 2), pairs)
    return model


def _measured(ansatz: Ansatz) -> QuantumCircuit:
    """The circuit with measurements; wire 0 is the last classical bit, so that the outcome is qpeft's basis index."""
    from qiskit.circuit import ClassicalRegister

    circuit = ansatz.to_qiskit()
    circuit.add_register(ClassicalRegister(ansatz.n_qubits, _REGISTER))
    circuit.measure(range(ansatz.n_qubits), range(ansatz.n_qubits)[::-1])
    return circuit


def _frequencies(bits: BitArray) -> Numbers:
    """(B, D) from the bytes (B, shots, bytes) of each shot, the most significant byte first."""
    index = bits.array @ 256 ** np.arange(bits.array.shape[-1])[::-1]  # (B, shots)
    counts = [np.bincount(outcomes, minlength=2**bits.num_bits) for outcomes in index]
    return np.stack(counts) / bits.num_shots


def _device_of(sampler: Any) -> Any:
    """The backend of the sampler; None for StatevectorSampler, which supports any gate."""
    device = getattr(sampler, "backend", None) or getattr(sampler, "_backend", None)  # Aer and Runtime: private
    return device() if callable(device) else device


def _name(sampler: Any, device: Any) -> str:
    kind = f"{type(sampler).__module__.partition('.')[0]}.{type(sampler).__name__}"
    where = getattr(device, "name", None)
    return f"{where} ({kind})" if where else kind


def _default_shots(sampler: Any) -> int | None:
    shots = getattr(sampler, "default_shots", None) or getattr(getattr(sampler, "options", None), "default_shots", None)
    return shots if isinstance(shots, int) else None  # Runtime's options may be Unset
