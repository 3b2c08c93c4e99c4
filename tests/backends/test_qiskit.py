"""Qiskit samplers: bit order, one job per batch, unbiased gradients, noise, options of the samplers."""

import math

import numpy as np
import pytest
import torch
from qiskit.primitives import BackendSamplerV2, StatevectorSampler
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_aer.primitives import SamplerV2 as AerSampler
from scipy.stats import chi2

import qpeft
from circuits import ANSATZE, exact, random_angles
from qpeft.backends import CircuitRun, Jobs, as_backend
from qpeft.backends.qiskit import QiskitBackend
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError

# Qiskit's warning on a fake device with noise
pytestmark = pytest.mark.filterwarnings("ignore:.*has no QubitProperties:UserWarning")

LADDER = Ansatz("ry_ladder", 3, 2)
WEIGHTS = np.array([0.3, -1.0, 2.0, 0.7, -0.2, 1.1, -1.6, 0.4])


def fake_device(n_qubits=5, noise=False, coupling_map=None):
    return GenericBackendV2(n_qubits, coupling_map=coupling_map, noise_info=noise, seed=1)


def on(device, seed=0, **options):
    return BackendSamplerV2(backend=device, options={"seed_simulator": seed, **options})


NOISELESS = {
    "statevector": lambda seed=0: StatevectorSampler(seed=seed),
    "aer": lambda seed=0: AerSampler(seed=seed),
    "fake device": lambda seed=0: on(fake_device(), seed),
    "fake line": lambda seed=0: on(fake_device(coupling_map=CouplingMap.from_line(5)), seed),
}
every_sampler = pytest.mark.parametrize("name", NOISELESS)


def assert_drawn_from(frequencies, p, shots):
    """Pearson's statistic is below the quantile that one draw in 10^6 exceeds; impossible outcomes do not occur."""
    assert (frequencies[p < 1e-12] == 0).all()
    rare = p * shots < 5  # one cell, with the least of the others
    rare |= p == p[~rare].min()
    expected, found = (np.append(q[~rare], q[rare].sum()) for q in (p, frequencies))
    statistic = shots * ((found - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-6, df=max(len(expected) - 1, 1))


@every_sampler
def test_wire_0_is_the_most_significant_bit(name):
    """One flip at the top runs down the ladder."""
    angles = math.pi * np.eye(3)[:, None, :]  # three circuits of one layer
    found = QiskitBackend(NOISELESS[name]()).run(Ansatz("ry_ladder", 3, 1), angles, 50, 0)
    np.testing.assert_array_equal(found, np.eye(8)[[0b111, 0b011, 0b001]])


@pytest.mark.parametrize("n_qubits", [8, 9])
@pytest.mark.parametrize("name", ["statevector", "aer"])
def test_outcomes_with_more_than_8_bits(name, n_qubits):
    angles = math.pi * np.eye(n_qubits)[:, None, :]
    found = QiskitBackend(NOISELESS[name]()).run(Ansatz("ry_ladder", n_qubits, 1), angles, 10, 0)
    np.testing.assert_array_equal(found.argmax(axis=1), [2 ** (n_qubits - wire) - 1 for wire in range(n_qubits)])
    assert (found.max(axis=1) == 1).all()


@every_sampler
@pytest.mark.parametrize("ansatz", ANSATZE)
def test_frequencies_are_drawn_from_the_probabilities(name, ansatz):
    """On a line the ring of QAA's circuits is routed, so wires end elsewhere than they began."""
    ansatz = Ansatz(ansatz, 4, 2)
    angles = random_angles(ansatz, 3)
    found = QiskitBackend(NOISELESS[name]()).run(ansatz, angles, 20_000, 0)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    for frequencies, p in zip(found, exact(ansatz, angles), strict=True):
        assert_drawn_from(frequencies, p, 20_000)


class Watched(StatevectorSampler):
    """Records its jobs."""

    def __init__(self, **options):
        super().__init__(**options)
        self.jobs = []

    def run(self, pubs, *, shots=None):
        self.jobs.append((list(pubs), shots))
        return super().run(pubs, shots=shots)


def gradient(run):
    leaf = torch.from_numpy(random_angles(LADDER)).requires_grad_()
    return torch.autograd.grad(torch.from_numpy(WEIGHTS) @ run(leaf), leaf)[0].numpy()


def test_gradient_is_one_job_of_one_pub():
    sampler = Watched(seed=0)
    gradient(CircuitRun(LADDER, Jobs(QiskitBackend(sampler), 1000)))
    (value,), shots = sampler.jobs[0]
    assert shots == 1000
    (slope,), shots = sampler.jobs[1]
    assert shots == 1000
    assert len(sampler.jobs) == 2
    assert value[0] is slope[0]  # the circuit itself
    assert [next(iter(pub[1].values())).shape for pub in (value, slope)] == [(1, 6), (12, 6)]


def test_angles_removed_by_the_transpiler_are_not_sent():
    """A rotation by 0 is none, so the others must reach their own gates."""
    backend = QiskitBackend(StatevectorSampler(seed=0))
    del backend._transpiled(LADDER).data[0]
    angles = random_angles(LADDER, 2)
    angles[:, 0, 0] = 0
    found = backend.run(LADDER, angles, 20_000, 0)
    assert backend._transpiled(LADDER).num_parameters == 5
    for frequencies, p in zip(found, exact(LADDER, angles), strict=True):
        assert_drawn_from(frequencies, p, 20_000)


def test_circuit_is_transpiled_to_the_device_of_the_sampler():
    device = fake_device(6, coupling_map=CouplingMap.from_line(6))
    for sampler in (on(device), AerSampler.from_backend(AerSimulator.from_backend(device))):
        backend = QiskitBackend(sampler)
        backend.check(LADDER, None)
        found = backend._transpiled(LADDER)
        assert set(found.count_ops()) <= {"rz", "sx", "x", "cx", "measure"}
        assert found.num_qubits == 6


# settings of the samplers


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        (StatevectorSampler(), "StatevectorSampler"),
        (AerSampler(), "aer_simulator"),
        (on(fake_device()), "generic_backend_5q"),
    ],
)
def test_samplers_are_recognized(sampler, name):
    backend = as_backend(sampler, 3)
    assert isinstance(backend, QiskitBackend)
    assert backend.sampler is sampler
    assert backend.name == name
    assert backend.is_simulator
    assert not backend.has_exact


def test_unknown_device_is_not_a_simulator():
    class Remote(GenericBackendV2):
        pass

    assert not QiskitBackend(on(Remote(3, seed=1))).is_simulator


def test_too_few_qubits_are_refused(llama, adapters):
    sampler = on(fake_device(2))
    with pytest.raises(ConfigError, match="generic_backend_2q"):
        CircuitRun(LADDER, Jobs(QiskitBackend(sampler)))
    with pytest.raises(ConfigError, match="generic_backend_2q"):
        qpeft.set_backend(adapters.qpa(llama, chunk_size=64), sampler)


# noise


def test_noise_model_of_the_user():
    """A readout that is wrong one time in four."""
    model = NoiseModel()
    model.add_all_qubit_readout_error(ReadoutError([[0.75, 0.25], [0.25, 0.75]]))
    sampler = AerSampler(seed=1, options={"backend_options": {"noise_model": model}})
    ansatz = Ansatz("ry_ladder", 2, 1)
    found = as_backend(sampler, 2).run(ansatz, np.zeros((1, *ansatz.angle_shape)), 50_000, 0)
    assert_drawn_from(found[0], np.array([9, 3, 3, 1]) / 16, 50_000)


@pytest.mark.parametrize("name", ["qiskit:aer", "qiskit:statevector"])
def test_counts_of_named_samplers_depend_only_on_the_seed(name):
    """A resumed run draws the same counts as an uninterrupted one; equal circuits of one job differ."""
    angles = random_angles(LADDER, 1).repeat(2, axis=0)

    def drawn(seed):
        return as_backend(name, 3).run(LADDER, angles, 1000, seed)

    first = drawn(2**64 - 1)
    np.testing.assert_array_equal(drawn(2**64 - 1), first)
    assert not np.array_equal(drawn(1), first)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    "arguments", [("qiskit:abacus", 3, 0.0), ("qiskit:statevector", 3, 0.1), ("qiskit:aer", 3, 0.1)]
)
def test_unusable_named_samplers_are_refused(arguments):
    with pytest.raises(ConfigError, match=arguments[0]):
        as_backend(*arguments)
