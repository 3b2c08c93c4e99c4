"""Circuits on a Qiskit sampler: a simulator with or without noise, a fake device, or hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qiskit.circuit import ClassicalRegister, QuantumCircuit
from qiskit.primitives import BaseSamplerV2, StatevectorSampler
from qiskit.transpiler import generate_preset_pass_manager

from qpeft.backends.backend import Backend, Numbers
from qpeft.circuits import Ansatz, to_qiskit
from qpeft.errors import ConfigError

_SIMULATORS = ("qiskit_aer", "fake_provider", "basic_provider")  # in the name of a backend's module


class QiskitBackend(Backend):
    """A Qiskit sampler (`BaseSamplerV2`): StatevectorSampler, Aer's, BackendSamplerV2, IBM
    Runtime's.

    One call of `run` is one job of one PUB, the circuit with all sets of angles. The circuit is
    transpiled once, with free angles, for the sampler's backend.

    The sampler is used unchanged. With an integer seed, it draws the same random numbers in every
    job, StatevectorSampler even for every circuit: for training, set no seed, or give
    StatevectorSampler a NumPy Generator.

    Args:
        sampler: The user's sampler.
        make: Makes the sampler of each job from the job's seed, so that a resumed run draws the
            same counts.
    """

    def __init__(
        self, sampler: BaseSamplerV2, make: Callable[[int], BaseSamplerV2] | None = None
    ) -> None:
        self.sampler = sampler
        self._make = make
        # by the ansatz and the identity of its family: a cell that was registered again has another
        self._circuits: dict[tuple[Ansatz, int], QuantumCircuit] = {}
        # the device, which only StatevectorSampler lacks; private in Aer's and Runtime's samplers
        device: Any = getattr(sampler, "backend", None) or getattr(sampler, "_backend", None)
        self._device: Any = device() if callable(device) else device
        self.name = getattr(self._device, "name", None) or type(sampler).__name__
        self.is_simulator = self._device is None or any(
            part in type(self._device).__module__ for part in _SIMULATORS
        )

    def run(self, ansatz: Ansatz, angles: Numbers, shots: int | None, seed: int) -> Numbers:
        if self._make is not None:
            self.sampler = self._make(seed % 2**63)  # Aer's seeds are signed
        circuit = self._transpiled(ansatz)
        free = tuple(circuit.parameters)  # the transpiler may have removed angles without effect
        values = angles.reshape(len(angles), -1)[:, [parameter.index for parameter in free]]
        job = self.sampler.run([(circuit, {free: values})], shots=shots)
        bits = job.result()[0].data["outcome"]
        # the bytes of each shot, the most significant first
        index = bits.array @ 256 ** np.arange(bits.array.shape[-1])[::-1]  # (B, shots)
        counts = [np.bincount(outcomes, minlength=2**bits.num_bits) for outcomes in index]
        return np.stack(counts) / bits.num_shots

    def check(self, ansatz: Ansatz, shots: int | None) -> None:
        self._transpiled(ansatz)

    def _transpiled(self, ansatz: Ansatz) -> QuantumCircuit:
        """The circuit with measurements; wire 0 is the last classical bit, so that the outcome is
        the basis index.
        """
        key = (ansatz, id(ansatz.family))  # the ansatz keeps its family alive
        if key not in self._circuits:
            circuit = to_qiskit(ansatz)
            circuit.add_register(ClassicalRegister(ansatz.n_qubits, "outcome"))
            circuit.measure(range(ansatz.n_qubits), range(ansatz.n_qubits)[::-1])
            if self._device is not None:
                circuit = generate_preset_pass_manager(backend=self._device, seed_transpiler=0).run(
                    circuit
                )
            self._circuits[key] = circuit
        return self._circuits[key]


def by_name(name: str, n_qubits: int, noise: float) -> QiskitBackend:
    """ "aer" or "statevector", without noise; the counts depend on the job's seed."""
    if noise or name not in ("aer", "statevector"):
        raise ConfigError(
            f"qiskit:{name} is unknown, or does not simulate noise; choose qiskit:aer or"
            " FILE.py:NAME"
        )

    def make(seed: int) -> BaseSamplerV2:
        if name == "statevector":  # an integer seed would be used again for every circuit of a job
            return StatevectorSampler(seed=np.random.default_rng(seed))
        from qiskit_aer.primitives import SamplerV2

        return SamplerV2(seed=seed)

    backend = QiskitBackend(make(0), make)
    backend.name = f"qiskit:{name}"
    return backend
