"""PennyLane devices: bit order, exact probabilities, gradients, shots, noise, seeds."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane.devices import LegacyDeviceFacade, QubitDevice

import qpeft
from circuits import ANSATZE, exact, random_angles
from qpeft.backends import CircuitRun, Jobs, as_backend
from qpeft.backends.pennylane import PennyLaneBackend
from qpeft.circuits import Ansatz
from qpeft.circuits.reference import gate_probabilities
from qpeft.errors import ConfigError

LADDER = Ansatz("ry_ladder", 3, 2)
WEIGHTS = np.array([0.3, -1.0, 2.0, 0.7, -0.2, 1.1, -1.6, 0.4])
SIMULATORS = ("default.qubit", "lightning.qubit", "default.mixed")

every_simulator = pytest.mark.parametrize("name", SIMULATORS)


def backend(name, wires=3, **options):
    return PennyLaneBackend(qml.device(name, wires=wires, **options))


def exact_gradient(ansatz, angles, weights=WEIGHTS):
    leaf = torch.from_numpy(angles).requires_grad_()
    value = torch.from_numpy(weights) @ gate_probabilities(ansatz, leaf)
    return torch.autograd.grad(value, leaf)[0].numpy()


@every_simulator
@pytest.mark.parametrize("wires", [None, 3, 5, ["b", "a", 7]])
@pytest.mark.parametrize("shots", [None, 50])
def test_wire_0_is_the_most_significant_bit(name, wires, shots):
    """One flip at the top runs down the ladder; on any wires of the device, with and without shots."""
    angles = math.pi * np.eye(3)[:, None, :]  # three circuits of one layer
    found = backend(name, wires).run(Ansatz("ry_ladder", 3, 1), angles, shots, 0)
    np.testing.assert_allclose(found, np.eye(8)[[0b111, 0b011, 0b001]], atol=1e-12)


@every_simulator
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_batch_of_every_ansatz_is_exact(name, ansatz):
    ansatz = Ansatz(ansatz, 3, 2)
    angles = random_angles(ansatz, 4)
    np.testing.assert_allclose(backend(name).run(ansatz, angles, None, 0), exact(ansatz, angles), atol=1e-12)


@every_simulator
@pytest.mark.parametrize("shots", [None, 100])
def test_batch_is_one_execution(name, shots):
    device = qml.device(name, wires=3)
    with qml.Tracker(device) as tracker:
        found = PennyLaneBackend(device).run(LADDER, random_angles(LADDER, 13), shots, 0)
    assert found.shape == (13, 8)
    assert found.dtype == np.float64
    assert tracker.totals["batches"] == 1
    assert tracker.totals["executions"] == 13
    assert tracker.totals.get("shots") == (None if shots is None else 1300)


def gradient(backend, angles, ansatz=LADDER):
    run = CircuitRun(ansatz, Jobs(backend))
    leaf = torch.from_numpy(angles).requires_grad_()
    return torch.autograd.grad(torch.from_numpy(WEIGHTS) @ run(leaf), leaf)[0].numpy()


ADJOINT, SHIFT = "adjoint", "parameter-shift"


@pytest.mark.parametrize(
    ("name", "rule"),
    [("default.qubit", ADJOINT), ("default.mixed", ADJOINT), ("lightning.qubit", SHIFT), ("reference.qubit", SHIFT)],
)
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_gradients_without_shots_equal_autograd(name, rule, ansatz):
    """The adjoint where PennyLane has it; with shots always the parameter shift."""
    ansatz, device = Ansatz(ansatz, 3, 2), backend(name)
    angles = random_angles(ansatz)
    assert [CircuitRun(ansatz, Jobs(device, shots)).gradient for shots in (None, 1000)] == [rule, SHIFT]
    in_float32 = name == "default.mixed" and ansatz.name in ("square", "rxyz")  # PennyLane's RZ, in torch
    tolerance = 5e-7 if in_float32 else 1e-10
    np.testing.assert_allclose(gradient(device, angles, ansatz), exact_gradient(ansatz, angles), atol=tolerance)


# noise


PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


def dense(matrix, wires, n_qubits):
    """Of one or two neighbouring wires, wire 0 first."""
    before, after = np.eye(2 ** wires[0]), np.eye(2 ** (n_qubits - 1 - wires[-1]))
    return np.kron(np.kron(before, matrix), after)


def noisy_probabilities(ansatz, angles, noise):
    """By density matrix: after each gate every Pauli error but the identity has the same probability."""
    rho = np.zeros((2**ansatz.n_qubits,) * 2, complex)
    rho[0, 0] = 1
    for gate in ansatz.gates():
        if gate.slot is None:
            unitary, strength = np.eye(4)[[0, 1, 3, 2]], noise
        else:
            c, s = np.cos(angles[gate.slot] / 2), np.sin(angles[gate.slot] / 2)
            unitary, strength = np.array([[c, -s], [s, c]]), noise / 10
        unitary = dense(unitary, gate.wires, ansatz.n_qubits)
        rho = unitary @ rho @ unitary.conj().T
        errors = [dense(e, gate.wires, ansatz.n_qubits) for e in pauli_words(len(gate.wires))]
        rho = (1 - strength) * rho + strength * sum(e @ rho @ e.conj().T for e in errors) / len(errors)
    return rho.diagonal().real


def pauli_words(n):
    """All but the identity."""
    words = list(itertools.product(PAULIS, repeat=n))[1:]
    return [word[0] if n == 1 else np.kron(*word) for word in words]


@pytest.mark.parametrize("n_qubits", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.02, 0.6])
def test_named_noise_is_depolarising(n_qubits, noise):
    ansatz = Ansatz("ry_ladder", n_qubits, 2)
    angles = random_angles(ansatz, 3)
    found = as_backend("pennylane:default.mixed", n_qubits, noise).run(ansatz, angles, None, 0)
    expected = np.stack([noisy_probabilities(ansatz, each, noise) for each in angles])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert abs(found - exact(ansatz, angles)).max() > 0.01 * noise
    np.testing.assert_allclose(
        np.stack([noisy_probabilities(ansatz, each, 0) for each in angles]), exact(ansatz, angles), atol=1e-12
    )


def finite_differences(backend, angles, step=1e-4):
    moves = step * np.eye(angles.size).reshape(-1, *angles.shape)
    plus, minus = (backend.run(LADDER, angles + sign * moves, None, 0) @ WEIGHTS for sign in (1, -1))
    return ((plus - minus) / (2 * step)).reshape(angles.shape)


@pytest.mark.parametrize("has_adjoint", [True, False])
def test_gradients_of_a_noisy_circuit_equal_finite_differences(has_adjoint):
    """Parameter shift is exact for a circuit with channels as well."""
    noisy = as_backend("pennylane:default.mixed", 3, 0.05)
    noisy.has_adjoint = has_adjoint
    found = gradient(noisy, random_angles(LADDER))
    expected = finite_differences(noisy, random_angles(LADDER))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(found - exact_gradient(LADDER, random_angles(LADDER))).max() > 0.05


def damping():
    after = qml.noise.op_eq("RY") | qml.noise.op_eq("CNOT")
    return qml.NoiseModel({after: lambda op, **_: [qml.AmplitudeDamping(0.1, wire) for wire in op.wires]})


def test_noise_model_of_the_user():
    """All RY angles 0: nothing to damp. All pi on one wire: each of the damped gates loses a tenth."""
    found = as_backend(qml.add_noise(qml.device("default.mixed", wires=1), damping()), 1)
    assert found.name == "default.mixed"
    p = found.run(Ansatz("ry_ladder", 1, 1), np.array([[[0.0]], [[math.pi]]]), None, 0)
    np.testing.assert_allclose(p, [[1, 0], [0.1, 0.9]], atol=1e-12)


# refused before any work


@qml.transform
def no_rotations(tape):
    if any(op.name == "RY" for op in tape.operations):
        raise qml.exceptions.DeviceError("RY is not calibrated today")
    return (tape,), lambda results: results[0]


@qml.transform
def counts_only(tape):
    if not tape.shots:
        raise qml.exceptions.DeviceError("this machine has no exact probabilities")
    return (tape,), lambda results: results[0]


@every_simulator
@pytest.mark.parametrize(
    ("wires", "restrict", "message"),
    [(2, None, "2 wires"), (3, no_rotations, "not calibrated"), (3, counts_only, "no exact probabilities")],
)
def test_device_that_cannot_run_the_circuit_is_refused(name, wires, restrict, message, llama, adapters):
    device = qml.device(name, wires=wires)
    device = device if restrict is None else restrict(device)
    with pytest.raises(ConfigError, match=message):
        CircuitRun(LADDER, Jobs(PennyLaneBackend(device)))
    if restrict is counts_only:
        CircuitRun(LADDER, Jobs(PennyLaneBackend(device), 1000))
    elif restrict is None:
        with pytest.raises(ConfigError, match=message):
            qpeft.set_backend(adapters.qpa(llama, chunk_size=64), device)


class Old(QubitDevice):
    """A device of PennyLane's old interface, which takes one circuit at a time."""

    name = short_name = "old"
    version = author = ""
    pennylane_requires = ">=0.30"
    operations: ClassVar = {"RY", "CNOT"}
    observables: ClassVar = {"PauliZ"}

    def apply(self, operations, **_):
        self.final = np.eye(2**self.num_wires)[0]
        for operation in operations:
            self.final = qml.matrix(operation, wire_order=self.wires) @ self.final

    def analytic_probability(self, wires=None):
        return self.marginal_prob(abs(self.final) ** 2, wires)

    @classmethod
    def capabilities(cls):
        return {**super().capabilities(), "returns_probs": True}


def test_device_of_the_old_interface():
    old = PennyLaneBackend(LegacyDeviceFacade(Old(wires=4, shots=None)))  # as qml.device gives it
    angles = random_angles(LADDER, 4)
    np.testing.assert_allclose(old.run(LADDER, angles, None, 0), exact(LADDER, angles), atol=1e-12)
    counts = 100 * old.run(LADDER, angles, 100, 0)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)


@pytest.mark.parametrize(
    "arguments",
    [("abacus", 3, 0.0), ("lightning.qubit", 3, 0.1), ("default.mixed", 30, 0.0)],
)
def test_unusable_named_devices_are_refused(arguments):
    with pytest.raises(ConfigError, match=arguments[0]):
        as_backend(f"pennylane:{arguments[0]}", *arguments[1:])


@pytest.mark.parametrize(("name", "noise"), [*((name, 0.0) for name in SIMULATORS), ("default.mixed", 0.1)])
def test_counts_of_named_simulators_depend_only_on_the_seed(name, noise):
    """A resumed run draws the same counts as an uninterrupted one."""
    simulator, angles = as_backend(f"pennylane:{name}", 3, noise), random_angles(LADDER, 2)
    first, other = (simulator.run(LADDER, angles, 500, seed) for seed in (2**63 + 1, 2))
    assert np.array_equal(simulator.run(LADDER, angles, 500, 2**63 + 1), first)
    assert np.array_equal(as_backend(f"pennylane:{name}", 3, noise).run(LADDER, angles, 500, 2**63 + 1), first)
    assert not np.array_equal(other, first)
    same = simulator.run(LADDER, angles[[0, 0]], 500, 3)
    assert not np.array_equal(same[0], same[1])  # circuits of one job have independent counts
