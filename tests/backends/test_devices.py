"""PennyLane devices and Qiskit samplers: bit order, probabilities, gradients, shots, noise, seeds,
refusals.
"""

import copy
import math
import sys
from functools import partial

import numpy as np
import pennylane as qml
import pytest
import torch
from qiskit.primitives import BackendSamplerV2, StatevectorSampler
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_aer.primitives import SamplerV2 as AerSampler
from scipy.stats import chi2

import qpeft
from circuits import ANSATZE, SHARED, exact, random_angles, value_and_gradient
from qpeft.backends import CircuitRun, Jobs, as_backend
from qpeft.backends.pennylane import PennyLaneBackend
from qpeft.backends.qiskit import QiskitBackend
from qpeft.circuits import Ansatz, register_ansatz, to_pennylane, to_qiskit
from qpeft.circuits.ansatz import Gate
from qpeft.circuits.reference import gate_probabilities
from qpeft.errors import ConfigError

LADDER = Ansatz("ry_ladder", 3, 2)
WEIGHTS = np.array([0.3, -1.0, 2.0, 0.7, -0.2, 1.1, -1.6, 0.4])
SIMULATORS = ("default.qubit", "lightning.qubit", "default.mixed")

every_simulator = pytest.mark.parametrize("name", SIMULATORS)


def backend(name, wires=3, **options):
    return PennyLaneBackend(qml.device(name, wires=wires, **options))


def gradient(run, angles):
    """Of the weighted sum of its probabilities."""
    return value_and_gradient(run, torch.from_numpy(angles), torch.from_numpy(WEIGHTS))[1].numpy()


def exact_gradient(ansatz, angles):
    return gradient(partial(gate_probabilities, ansatz), angles)


@every_simulator
@pytest.mark.parametrize("wires", [None, 3, 5, ["b", "a", 7]])
@pytest.mark.parametrize("shots", [None, 50])
def test_wire_0_is_the_most_significant_bit(name, wires, shots):
    """One flip at the top runs down the ladder; on any wires of the device, with and without shots."""
    angles = math.pi * np.eye(3)[:, None, :]  # three circuits of one layer
    frequencies = backend(name, wires).run(Ansatz("ry_ladder", 3, 1), angles, shots, 0)
    np.testing.assert_allclose(frequencies, np.eye(8)[[0b111, 0b011, 0b001]], atol=1e-12)


@every_simulator
@pytest.mark.parametrize("shots", [None, 100])
def test_batch_is_one_execution(name, shots):
    device = qml.device(name, wires=3)
    with qml.Tracker(device) as tracker:
        PennyLaneBackend(device).run(LADDER, random_angles(LADDER, 13).numpy(), shots, 0)
    assert tracker.totals["batches"] == 1
    assert tracker.totals["executions"] == 13
    assert tracker.totals.get("shots") == (None if shots is None else 1300)


@pytest.mark.filterwarnings("ignore")  # PennyLane deprecates devices with shots
@every_simulator
def test_device_with_shots_of_its_own_does_not_run_without_shots(name):
    device = qml.device(name, wires=3, shots=100)
    with pytest.raises(ConfigError, match=r"100.* give their number as shots"):
        CircuitRun(LADDER, Jobs(as_backend(device, 3)))
    CircuitRun(LADDER, Jobs(as_backend(device, 3), 100))


@pytest.mark.parametrize("name", [*SIMULATORS, "reference.qubit"])
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_probabilities_and_gradients_without_shots_are_exact(name, ansatz):
    ansatz, device = Ansatz(ansatz, 3, 2), backend(name)
    angles, *others = random_angles(ansatz, 4).numpy()
    batch = np.stack([angles, *others])

    np.testing.assert_allclose(device.run(ansatz, batch, None, 0), exact(ansatz, batch), atol=1e-12)

    slopes = gradient(CircuitRun(ansatz, Jobs(device)), angles)
    in_float32 = name == "default.mixed" and ansatz.name in ("square", "rxyz")  # PennyLane's RZ
    tolerance = 5e-7 if in_float32 else 1e-10

    np.testing.assert_allclose(slopes, exact_gradient(ansatz, angles), atol=tolerance)


@pytest.mark.parametrize(
    "name, shots, rule, executions",
    [
        ("default.qubit", None, "backpropagation", 1),
        ("default.mixed", None, "backpropagation", 1),
        ("lightning.qubit", None, "parameter shift", 13),
        ("default.qubit", 1000, "parameter shift", 13),
    ],
)
def test_executions_of_a_step_are_those_that_the_run_counts(name, shots, rule, executions):
    device = qml.device(name, wires=3)
    run = CircuitRun(LADDER, Jobs(PennyLaneBackend(device), shots))
    assert f"gradients by {rule}" in str(run)

    with qml.Tracker(device) as tracker:
        gradient(run, random_angles(LADDER).numpy())
    assert tracker.totals["executions"] == run.circuits_per_step == executions

    forecast = run.forecast(1)
    assert run.jobs.used["circuits"] == forecast["circuits"] == executions
    assert run.jobs.used["jobs"] == tracker.totals["batches"] == forecast["jobs_per_step"]


# noise


@pytest.mark.parametrize("noise", [0.02, 0.6])
def test_named_noise_is_depolarising(noise):
    """After each gate every Pauli error but the identity has the same probability: noise, or a
    tenth on one wire.
    """

    def run(n_qubits, angles):
        ansatz = Ansatz("ry_ladder", n_qubits, len(angles))
        frequencies = as_backend("pennylane:default.mixed", n_qubits, noise).run(
            ansatz, np.array([angles]), None, 0
        )
        return frequencies[0]

    # each gate shrinks the Bloch vector
    a = 0.7
    b = -1.9
    shrunk = (1 - 4 / 3 * noise / 10) ** 2 * math.cos(a + b)

    np.testing.assert_allclose(run(1, [[a], [b]]), [(1 + shrunk) / 2, (1 - shrunk) / 2], atol=1e-12)

    flip = 2 / 3 * noise / 10  # of |0>, by X and Y
    p = np.outer(*[[1 - flip, flip]] * 2).flatten()[[0, 1, 3, 2]]  # behind the CNOT
    # flips of both wires: 4 words of 15 each, and 3 without a flip
    errors = np.full(4, 4 / 15 * noise)
    errors[0] = 1 - errors[1:].sum()
    expected = [sum(p[j] * errors[i ^ j] for j in range(4)) for i in range(4)]

    np.testing.assert_allclose(run(2, [[0.0, 0.0]]), expected, atol=1e-12)


@pytest.mark.parametrize("ansatz", [LADDER, SHARED["qaoa"], SHARED["scaled"]], ids=str)
def test_gradients_of_a_noisy_circuit_equal_finite_differences(ansatz):
    """By backpropagation, and by the parameter shift, which is exact for channels as well."""
    noisy = as_backend("pennylane:default.mixed", 3, 0.05)
    angles = random_angles(ansatz).numpy()
    moves = 1e-4 * np.eye(angles.size).reshape(-1, *angles.shape)
    plus, minus = (noisy.run(ansatz, angles + sign * moves, None, 0) @ WEIGHTS for sign in (1, -1))
    expected = ((plus - minus) / 2e-4).reshape(angles.shape)
    for noisy.has_backprop in (True, False):
        slopes = gradient(CircuitRun(ansatz, Jobs(noisy)), angles)
        np.testing.assert_allclose(slopes, expected, atol=2e-6)

    assert abs(expected - exact_gradient(ansatz, angles)).max() > 0.05


def test_noise_model_of_the_user():
    """All RY angles 0: nothing to damp. All pi on one wire: each of the damped gates loses a tenth."""
    damping = {qml.noise.op_eq("RY"): lambda op, **_: qml.AmplitudeDamping(0.1, op.wires)}
    found = as_backend(
        qml.add_noise(qml.device("default.mixed", wires=1), qml.NoiseModel(damping)), 1
    )

    assert found.name == "default.mixed"

    p = found.run(Ansatz("ry_ladder", 1, 1), np.array([[[0.0]], [[math.pi]]]), None, 0)
    np.testing.assert_allclose(p, [[1, 0], [0.1, 0.9]], atol=1e-12)


# refused before any work


@qml.transform
def counts_only(tape):
    if not tape.shots:
        raise qml.exceptions.DeviceError("this machine has no exact probabilities")
    return (tape,), lambda results: results[0]


@pytest.mark.parametrize(
    "name",
    ["pennylane:default.qubit", "pennylane:lightning.qubit", "pennylane:default.mixed", "noisy", "qiskit:aer",
     "qiskit:statevector"],
)  # fmt: skip
def test_counts_of_named_simulators_depend_only_on_the_seed(name):
    """A resumed run draws the same counts as an uninterrupted one."""
    named, noise = ("pennylane:default.mixed", 0.1) if name == "noisy" else (name, 0.0)
    simulator = as_backend(named, 3, noise)
    angles = random_angles(LADDER, 2).numpy()
    seed = 2**64 - 1
    first, other = (simulator.run(LADDER, angles, 500, each) for each in (seed, 2))

    assert np.array_equal(simulator.run(LADDER, angles, 500, seed), first)
    assert np.array_equal(as_backend(named, 3, noise).run(LADDER, angles, 500, seed), first)
    assert not np.array_equal(other, first)

    same = simulator.run(LADDER, angles[[0, 0]], 500, 3)
    assert not np.array_equal(same[0], same[1])  # circuits of one job have independent counts


@pytest.mark.parametrize(
    "name, n_qubits, noise",
    [
        ("pennylane:abacus", 3, 0.0),
        ("pennylane:lightning.qubit", 3, 0.1),
        ("pennylane:default.mixed", 30, 0.0),
        ("qiskit:abacus", 3, 0.0),
        ("qiskit:statevector", 3, 0.1),
        ("qiskit:aer", 3, 0.1),
    ],
)
def test_unusable_named_devices_are_refused(name, n_qubits, noise):
    with pytest.raises(ConfigError, match=name.partition(":")[2]):
        as_backend(name, n_qubits, noise)


def test_device_that_cannot_run_the_circuit_is_refused(llama, adapters):
    for few, message in (
        *((qml.device(name, wires=2), "2 wires") for name in SIMULATORS),
        (on(fake_device(2)), "generic_backend_2q"),
    ):
        with pytest.raises(ConfigError, match=message):
            CircuitRun(LADDER, Jobs(as_backend(few, 3)))
        with pytest.raises(ConfigError, match=message):
            qpeft.set_backend(adapters.qpa(copy.deepcopy(llama), chunk_size=64), few)
    device = PennyLaneBackend(counts_only(qml.device("default.qubit", wires=3)))
    CircuitRun(LADDER, Jobs(device, 1000))

    with pytest.raises(ConfigError, match="no exact probabilities"):
        CircuitRun(LADDER, Jobs(device))


@pytest.mark.parametrize(
    "missing, remedy, use",
    [
        ("qiskit", "pip install qiskit qiskit-aer", lambda: to_qiskit(LADDER)),
        ("qiskit_aer", "pip install qiskit qiskit-aer", lambda: as_backend("qiskit:aer", 3)),
        ("pennylane", "pip install pennylane", lambda: to_pennylane(LADDER)),
        ("pennylane", "pip install pennylane", lambda: as_backend("pennylane:default.qubit", 3)),
    ],
)
def test_missing_package_is_named(monkeypatch, missing, remedy, use):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("qpeft.backends.pennylane", "qpeft.backends.qiskit"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=f": {remedy}$"):
        use()


# -- Qiskit


# Qiskit's, on fake devices
pytestmark = pytest.mark.filterwarnings("ignore:.*has no QubitProperties:UserWarning")


def fake_device(n_qubits=5, coupling_map=None):
    return GenericBackendV2(n_qubits, coupling_map=coupling_map, noise_info=False, seed=1)


def on(device, seed=0, **options):
    return BackendSamplerV2(backend=device, options={"seed_simulator": seed, **options})


NOISELESS = {
    "statevector": lambda seed=0: StatevectorSampler(seed=seed),
    "aer": lambda seed=0: AerSampler(seed=seed),
    "fake device": lambda seed=0: on(fake_device(), seed),
    "fake line": lambda seed=0: on(fake_device(coupling_map=CouplingMap.from_line(5)), seed),
}


def assert_drawn_from(frequencies, p, shots):
    """Pearson's statistic is below the quantile that one draw in 10^6 exceeds; impossible outcomes
    do not occur.
    """
    assert (frequencies[p < 1e-12] == 0).all()

    rare = p * shots < 5  # one cell, with the least of the others
    rare |= p == p[~rare].min()
    expected, found = (np.append(q[~rare], q[rare].sum()) for q in (p, frequencies))
    statistic = shots * ((found - expected) ** 2 / expected).sum()

    assert statistic < chi2.ppf(1 - 1e-6, df=max(len(expected) - 1, 1))


@pytest.mark.parametrize("n_qubits", [8, 9])
@pytest.mark.parametrize("name", ["statevector", "aer"])
def test_outcomes_with_more_than_8_bits(name, n_qubits):
    angles = math.pi * np.eye(n_qubits)[:, None, :]
    frequencies = QiskitBackend(NOISELESS[name]()).run(
        Ansatz("ry_ladder", n_qubits, 1), angles, 10, 0
    )
    np.testing.assert_array_equal(
        frequencies.argmax(axis=1), [2 ** (n_qubits - wire) - 1 for wire in range(n_qubits)]
    )
    assert (frequencies.max(axis=1) == 1).all()


@pytest.mark.parametrize("name", NOISELESS)
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_frequencies_are_drawn_from_the_probabilities(name, ansatz):
    """On a line the ring of QAA's circuits is routed, so wires end elsewhere than they began."""
    ansatz = Ansatz(ansatz, 4, 2)
    angles = random_angles(ansatz, 3).numpy()
    answers = QiskitBackend(NOISELESS[name]()).run(ansatz, angles, 20_000, 0)

    assert answers.dtype == np.float64
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-12)

    for frequencies, p in zip(answers, exact(ansatz, angles), strict=True):
        assert_drawn_from(frequencies, p, 20_000)


def test_ansatz_that_is_registered_again_is_another_circuit_on_a_sampler():
    """Its name and sizes are the same, and adapters made before keep the earlier circuit."""
    angles = np.array([[1.2]])
    sampler = QiskitBackend(StatevectorSampler(seed=0))
    for wire in (0, 1):
        gates = [Gate("ry", (wire,), (0,))]
        register_ansatz("again", lambda *_: (1,), lambda *_, gates=gates: [gates])
        ansatz = Ansatz("again", 2, 1)
        (found,) = sampler.run(ansatz, angles, 4000, 0)
        expected = gate_probabilities(ansatz, torch.from_numpy(angles)).numpy()
        np.testing.assert_allclose(found, expected, atol=0.03)


def test_angles_removed_by_the_transpiler_are_not_sent():
    """A rotation by 0 is none, so the others must reach their own gates."""
    backend = QiskitBackend(StatevectorSampler(seed=0))
    del backend._transpiled(LADDER).data[0]
    angles = random_angles(LADDER, 2).numpy()
    angles[:, 0, 0] = 0
    answers = backend.run(LADDER, angles, 20_000, 0)

    assert backend._transpiled(LADDER).num_parameters == 5

    for frequencies, p in zip(answers, exact(LADDER, angles), strict=True):
        assert_drawn_from(frequencies, p, 20_000)


class Remote(GenericBackendV2):
    """A device that is no simulator."""


@pytest.mark.parametrize(
    "sampler, name",
    [
        (StatevectorSampler(), "StatevectorSampler"),
        (AerSampler(), "aer_simulator"),
        (on(fake_device()), "generic_backend_5q"),
        (on(Remote(5, seed=1)), "generic_backend_5q"),
    ],
)
def test_samplers_are_recognized(sampler, name):
    backend = as_backend(sampler, 3)
    assert isinstance(backend, QiskitBackend)
    assert backend.sampler == sampler
    assert backend.name == name
    assert backend.has_exact is False
    assert backend.is_simulator == (not isinstance(getattr(sampler, "backend", None), Remote))

    if "generic" in name:  # transpiled to the device
        backend.check(LADDER, None)
        transpiled = backend._transpiled(LADDER)
        assert set(transpiled.count_ops()) <= {"rz", "sx", "x", "cx", "measure"}
        assert transpiled.num_qubits == 5
