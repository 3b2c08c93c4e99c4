"""PennyLane devices: bit order, exact probabilities, gradients, shots, noise, seeds."""

import copy
import itertools
import math
from typing import ClassVar

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane.devices import DefaultQubit, LegacyDeviceFacade, QubitDevice

import qpeft
from circuits import ANSATZE, exact, random_angles
from qpeft.backends import CircuitRun, Jobs
from qpeft.backends.named import as_backend
from qpeft.backends.pennylane import PennyLaneBackend, backend_by_name
from qpeft.backends.settings import backend_settings
from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_probabilities
from qpeft.errors import BackendError, ConfigError

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


@every_simulator
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_adjoint_gradient_equals_autograd(name, ansatz):
    ansatz = Ansatz(ansatz, 3, 2)
    angles = random_angles(ansatz)
    found = backend(name).adjoint(ansatz, angles, WEIGHTS)
    assert found.shape == ansatz.angle_shape
    in_float32 = name == "default.mixed" and ansatz.name in ("square", "rxyz")  # PennyLane's RZ, in torch
    np.testing.assert_allclose(found, exact_gradient(ansatz, angles), atol=5e-7 if in_float32 else 1e-12)


@every_simulator
@pytest.mark.parametrize("wires", [None, 5, ["b", "a", 7, "c"]])
def test_adjoint_gradient_on_any_wires(name, wires):
    angles = random_angles(LADDER)
    found = backend(name, wires).adjoint(LADDER, angles, WEIGHTS)
    np.testing.assert_allclose(found, exact_gradient(LADDER, angles), atol=1e-12)


def gradient(device, shots=None, gradient="auto", angles=None):
    run = CircuitRun(LADDER, Jobs(PennyLaneBackend(device), shots), gradient)
    leaf = torch.from_numpy(random_angles(LADDER) if angles is None else angles).requires_grad_()
    return torch.autograd.grad(torch.from_numpy(WEIGHTS) @ run(leaf), leaf)[0].numpy()


@every_simulator
def test_parameter_shift_without_shots_equals_the_exact_gradient(name):
    angles = torch.from_numpy(random_angles(LADDER)).requires_grad_()
    own = torch.autograd.grad(torch.from_numpy(WEIGHTS) @ probabilities(angles), angles)[0]
    found = gradient(qml.device(name, wires=3), gradient="parameter-shift")
    np.testing.assert_allclose(found, own.numpy(), atol=1e-10)


@pytest.mark.filterwarnings("ignore:Setting shots on device is deprecated")
@every_simulator
def test_requested_shots_replace_those_of_the_device(name):
    backend = PennyLaneBackend(qml.device(name, wires=3, shots=40))
    angles = random_angles(LADDER, 1)
    assert Jobs(backend).shots == 40
    assert Jobs(backend, 64).shots == 64
    for shots in (40, 64):
        counts = shots * backend.run(LADDER, angles, shots, 0)
        np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
        assert counts.sum() == pytest.approx(shots)


def test_capabilities_of_devices():
    for name in SIMULATORS:
        able = backend(name)
        assert able.has_exact
        assert able.has_adjoint
        assert able.is_simulator
        assert able.default_shots is None
    assert not backend("reference.qubit").has_adjoint


def test_auto_selects_adjoint_if_available():
    def chosen(name, shots=None):
        return CircuitRun(LADDER, Jobs(backend(name), shots), "auto").gradient

    assert [chosen(name) for name in SIMULATORS] == ["adjoint"] * 3
    assert [chosen(name, 1000) for name in SIMULATORS] == ["parameter-shift"] * 3
    assert chosen("reference.qubit") == "parameter-shift"


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
    found = backend_by_name("default.mixed", n_qubits, noise).run(ansatz, angles, None, 0)
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


@pytest.mark.parametrize("rule", ["adjoint", "parameter-shift"])
def test_gradients_of_a_noisy_circuit_equal_finite_differences(rule):
    """Parameter shift is exact for a circuit with channels as well."""
    noisy = backend_by_name("default.mixed", 3, 0.05)
    found = gradient(noisy.device, gradient=rule)
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


def test_coherent_errors_on_lightning_have_adjoint_gradients():
    """A coherent error adds gates whose angles are not trained."""
    model = qml.NoiseModel({qml.noise.op_eq("RY"): lambda op, **_: qml.RX(0.3, op.wires)})
    device = qml.add_noise(qml.device("lightning.qubit", wires=3), model)
    run = PennyLaneBackend(device)
    angles = random_angles(LADDER)
    assert run.has_adjoint
    found = run.adjoint(LADDER, angles, WEIGHTS)
    np.testing.assert_allclose(found, finite_differences(run, angles), atol=1e-6)
    assert abs(found - exact_gradient(LADDER, angles)).max() > 0.01


# refused before any work


@pytest.mark.parametrize("name", SIMULATORS)
def test_too_few_wires_are_refused(name, llama, adapters):
    device = qml.device(name, wires=2)
    with pytest.raises(ConfigError, match=f"{name} has 2 wires and the circuit needs 3"):
        CircuitRun(LADDER, Jobs(PennyLaneBackend(device)))
    with pytest.raises(ConfigError, match=f"{name} has 2 wires and the circuit needs 5"):
        qpeft.set_backend(adapters.qpa(llama, chunk_size=64), device)


@qml.transform
def no_rotations(tape):
    if any(op.name == "RY" for op in tape.operations):
        raise qml.exceptions.DeviceError("RY is not calibrated today")
    return (tape,), lambda results: results[0]


@every_simulator
def test_unsupported_circuit_is_refused(name):
    backend = PennyLaneBackend(no_rotations(qml.device(name, wires=3)))
    with pytest.raises(ConfigError, match=f"{name} cannot run ry_ladder: RY is not calibrated today"):
        CircuitRun(LADDER, Jobs(backend))


@qml.transform
def counts_only(tape):
    if not tape.shots:
        raise qml.exceptions.DeviceError("this machine has no exact probabilities")
    return (tape,), lambda results: results[0]


def test_device_without_exact_probabilities_needs_shots():
    backend = PennyLaneBackend(counts_only(qml.device("default.qubit", wires=3)))
    assert not backend.has_exact
    with pytest.raises(ConfigError, match=r"default\.qubit returns counts and no exact probabilities"):
        CircuitRun(LADDER, Jobs(backend))
    assert CircuitRun(LADDER, Jobs(backend, 1000)).gradient == "parameter-shift"


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
    assert CircuitRun(LADDER, Jobs(old)).gradient == "parameter-shift"


def test_other_pennylane_object_is_refused():
    with pytest.raises(ConfigError, match="a PennyLane device is needed"):
        as_backend(qml.QNode(lambda: None, qml.device("default.qubit")), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("abacus", 3, 0.0), "unknown PennyLane device 'abacus'; installed: .*default.qubit.*lightning.qubit"),
        (("lightning.qubit", 3, 0.1), "lightning.qubit does not simulate noise; use default.mixed"),
        (("default.gaussian", 3, 0.0), "with 3 wires cannot run the circuit: .*RY"),
        (
            ("default.mixed", 30, 0.0),
            "the PennyLane device 'default.mixed' with 30 wires cannot run the circuit: .*23 wires",
        ),
    ],
)
def test_unusable_named_devices_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        backend_by_name(*arguments)


@pytest.mark.parametrize("noise", [1.0, -0.1])
def test_noise_out_of_range_is_refused(noise):
    with pytest.raises(ConfigError, match="noise must be"):
        backend_settings({"noise": noise})


def test_named_device_has_the_required_wires():
    assert len(backend_by_name("lightning.qubit", 5, 0.0).device.wires) == 5


@pytest.mark.parametrize(("name", "noise"), [*((name, 0.0) for name in SIMULATORS), ("default.mixed", 0.1)])
def test_counts_of_named_simulators_depend_only_on_the_seed(name, noise):
    """A resumed run draws the same counts as an uninterrupted one."""
    simulator, angles = backend_by_name(name, 3, noise), random_angles(LADDER, 2)
    first, other = (simulator.run(LADDER, angles, 500, seed) for seed in (2**63 + 1, 2))
    assert np.array_equal(simulator.run(LADDER, angles, 500, 2**63 + 1), first)
    assert np.array_equal(backend_by_name(name, 3, noise).run(LADDER, angles, 500, 2**63 + 1), first)
    assert not np.array_equal(other, first)
    same = simulator.run(LADDER, angles[[0, 0]], 500, 3)
    assert not np.array_equal(same[0], same[1])  # circuits of one job have independent counts


# training


class Flaky(DefaultQubit):
    """Fails at random, before sampling."""

    def __init__(self, share, **options):
        super().__init__(**options)
        self.share, self.failures, self.luck = share, 0, np.random.default_rng(0)

    def execute(self, circuits, execution_config=None):
        if self.luck.random() < self.share:
            self.failures += 1
            raise ConnectionError("the queue is full")
        return super().execute(circuits, execution_config)


def test_training_on_a_device_that_fails_at_random(llama, ids, adapters, monkeypatch):
    monkeypatch.setattr("qpeft.backends.jobs.time.sleep", lambda seconds: None)

    def train(device):
        model = adapters.qpa(copy.deepcopy(llama), chunk_size=64)
        run = qpeft.set_backend(model, device, shots=1000, retries=20)
        adapters.train(model, ids, steps=6)
        return run.jobs.used, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    flaky = Flaky(0.4, wires=5, seed=7)
    used, found = train(flaky)
    smooth, expected = train(DefaultQubit(wires=5, seed=7))
    assert used.failures == flaky.failures > 2
    assert (used.jobs, used.circuits) == (smooth.jobs, smooth.circuits)
    assert used.shots > smooth.shots  # repeated jobs count
    assert used.shots >= 6 * 31 * 1000  # six steps of 15 angles
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_training_on_a_dead_device_ends_with_its_error(llama, ids, adapters):
    model = adapters.qpa(llama, chunk_size=64)
    qpeft.set_backend(model, Flaky(1.0, wires=5), shots=1000, retries=0)
    with pytest.raises(BackendError, match=r"default\.qubit failed 1 times, the last time with: the queue is full"):
        adapters.train(model, ids, steps=1)
