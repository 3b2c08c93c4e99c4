"""Measurements of circuits against scipy, PennyLane, numpy, closed forms, and simulated random
states.
"""

import json
import math
import sys

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from circuits import SHARED, by_pennylane
from qpeft.circuits import Ansatz, from_pennylane
from qpeft.circuits.reference import gate_probabilities
from qpeft.errors import ConfigError
from qpeft_lab.diagnose import (
    equal_features,
    expressibility,
    gradient_variance,
    meyer_wallach,
    porter_thomas,
    random_angles,
    redundancy,
)
from qpeft_lab.diagnose.circuits import of_fidelities

OTHER = {"real": "complex", "complex": "real"}
PARAMETER = {"real": 0.5, "complex": 1.0}
CIRCUITS = "qpeft_lab.diagnose.circuits"


def is_json(measured):
    """Whether the values are JSON, which allows no NaN."""
    return json.loads(json.dumps(measured.values, allow_nan=False)) and measured.sentence


def haar_states(samples, n_qubits, field, seed=0):
    """Haar-random states: normalized Gaussian vectors."""
    drawn = np.random.default_rng(seed).standard_normal((samples, 2**n_qubits, 2))
    states = (
        torch.view_as_complex(torch.from_numpy(drawn))
        if field == "complex"
        else torch.from_numpy(drawn[..., 0])
    )
    return states / states.norm(dim=1, keepdim=True)


# -- Porter-Thomas


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize(
    "samples, n_qubits",
    [
        (200, 8),
        (1, 10),
        (20, 12),
        (500, 4),
    ],
)
def test_random_states_pass_for_their_field_and_fail_for_the_other(field, samples, n_qubits):
    p = haar_states(samples, n_qubits, field, seed=6).abs().square()
    own = porter_thomas(p, field)
    other = porter_thomas(p, OTHER[field])

    assert own["p_value"] > 0.01
    assert own["inverse_participation"] == pytest.approx(own["expected_participation"], rel=0.1)
    assert other["p_value"] == 1 / 200
    assert other["distance"] > 0.1


@pytest.mark.parametrize(
    "samples, size, tested",
    [
        pytest.param(1, 64, None, marks=pytest.mark.long),
        pytest.param(5, 16, None, marks=pytest.mark.long),
        (4, 2, None),
        (10, 32, 96),
    ],
)
def test_p_values_are_uniform_for_random_states(samples, size, tested, monkeypatch):
    if tested:
        monkeypatch.setattr(sys.modules[CIRCUITS], "_TESTED", tested)
    found = []
    naive = []
    for seed in range(120):
        p = np.random.default_rng(seed).dirichlet([0.5] * size, samples)
        found.append(porter_thomas(p)["p_value"])
        naive.append(stats.kstest(p.flatten(), stats.beta(0.5, 0.5 * (size - 1)).cdf).pvalue)

    assert stats.kstest(found, "uniform").pvalue > 0.01

    if not tested:
        assert stats.kstest(naive, "uniform").pvalue < 0.01, (
            "otherwise this test could not detect a wrong p-value"
        )


@pytest.mark.parametrize("field", OTHER)
def test_distance_and_moments_equal_scipy_and_numpy(field):
    p = np.random.default_rng(0).dirichlet([0.7] * 128, 30)
    law = stats.beta(PARAMETER[field], 127 * PARAMETER[field])
    found = porter_thomas(p, field)

    assert found["distance"] == pytest.approx(
        stats.kstest(p.flatten(), law.cdf).statistic, abs=1 / 4096
    )
    assert found["inverse_participation"] == pytest.approx(128**2 * np.mean(p**2))
    assert found["expected_participation"] == pytest.approx(
        {"real": 3 * 128 / 130, "complex": 2 * 128 / 129}[field]
    )
    assert porter_thomas(p[:1], field) == porter_thomas(p[0], field)


@settings(max_examples=25)
@given(
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([*OTHER]),
)
def test_extreme_probabilities_give_finite_results(constant, n_qubits, samples, field):
    size = 2**n_qubits
    p = np.full((samples, size), 1 / size) if constant else np.eye(size)[np.arange(samples) % size]
    found = porter_thomas(p, field)
    assert is_json(found)
    assert 1 / 200 <= found["p_value"] <= 1
    assert 1 - 1e-12 <= found["inverse_participation"] <= size


# -- redundancy


@settings(max_examples=20)
@given(
    st.sampled_from(["ry_ladder", "two_design"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_rank_equals_that_of_the_autograd_jacobian(name, n_qubits, n_layers, seed):
    ansatz = Ansatz(name, n_qubits, n_layers)
    angles = random_angles(ansatz, 1, seed)[0]
    jacobian = torch.autograd.functional.jacobian(
        lambda at: gate_probabilities(ansatz, at), angles
    ).flatten(1)
    found = redundancy(ansatz, angles)

    assert (
        found["independent"] == torch.linalg.matrix_rank(jacobian, rtol=1e-8) <= found["possible"]
    )
    assert found["angles"] == angles.numel()
    assert found["possible"] == min(angles.numel(), 2**n_qubits - 1)
    # p = (1, 0, ...) is an extreme
    assert redundancy(ansatz, torch.zeros_like(angles))["independent"] == 0
    assert is_json(found)


def qaoa(angles):
    """MaxCut on a ring: every gate of a layer shares one angle; RZ turn by twice of it."""
    n_wires = 4
    for wire in range(n_wires):
        qml.RY(math.pi / 2, wires=wire)
    for gamma, beta in angles:
        for wire in range(n_wires):
            pair = [wire, (wire + 1) % n_wires]
            qml.CNOT(pair)
            qml.RZ(2 * gamma, wires=pair[1])
            qml.CNOT(pair)
        for wire in range(n_wires):
            qml.RX(2 * beta, wires=wire)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_rank_of_shared_and_scaled_angles_is_that_of_pennylane_and_finite_differences(n_layers):
    ansatz = from_pennylane(qaoa, (n_layers, 2))
    angles = random_angles(ansatz, 1)[0]

    @qml.qnode(qml.device("default.qubit", wires=4))
    def probabilities(at):
        qaoa(at)
        return qml.probs()

    exact = torch.autograd.functional.jacobian(probabilities, angles).flatten(1)
    step = 1e-5
    shifts = step * torch.eye(angles.numel(), dtype=angles.dtype).view(-1, *angles.shape)
    columns = [(probabilities(angles + s) - probabilities(angles - s)) / (2 * step) for s in shifts]

    assert torch.allclose(exact, torch.stack(columns, dim=1), atol=1e-8)

    expected = int(torch.linalg.matrix_rank(exact, rtol=1e-8))
    assert redundancy(ansatz, angles)["independent"] == expected > 0


@pytest.mark.parametrize("name", SHARED)
def test_measurements_of_shared_and_scaled_angles(name):
    """Rank and slopes against PennyLane and finite differences; states against PennyLane."""
    ansatz = SHARED[name]
    run = by_pennylane(SHARED[name])
    angles = random_angles(ansatz, 6, seed=2)
    moves = 1e-5 * torch.eye(ansatz.n_angles, dtype=torch.float64)
    for at in angles[:2]:
        jacobian = torch.autograd.functional.jacobian(run, at)  # (D, P)
        differences = [(run(at + move) - run(at - move)) / 2e-5 for move in moves]
        torch.testing.assert_close(
            torch.stack(differences, 1),
            jacobian,
            rtol=0,
            atol=1e-8,
        )
        expected = torch.linalg.matrix_rank(jacobian, rtol=1e-8)
        assert redundancy(ansatz, at)["independent"] == expected > 0
    # 6 samples with the seed of `gradient_variance`, mean over angles of sum_i s_i D p_i squared
    circuits = sys.modules[CIRCUITS]
    drawn = np.random.Generator(np.random.Philox((5, 3, 1)))
    angles = random_angles(ansatz, 6, int(drawn.integers(2**63)))
    weights = math.sqrt(8) * drawn.choice([-1.0, 1.0], (6, 8))
    slopes = [
        torch.from_numpy(weight) @ torch.autograd.functional.jacobian(run, at)
        for at, weight in zip(angles, weights, strict=True)
    ]

    np.testing.assert_allclose(
        circuits._squared_slopes(ansatz, 6, 5), torch.stack(slopes).square().mean(1), atol=1e-10
    )
    torch.testing.assert_close(
        circuits.random_states(ansatz, 6, 3).abs().square().to(torch.float64),
        torch.stack([run(at) for at in random_angles(ansatz, 6, 3)]),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", ["qaoa", "redundant"])
def test_redundant_angles_are_named_and_the_others_have_the_whole_rank(name):
    """The named gates are the first of the redundant angles; without them the rank is the same."""
    of_name = {"qaoa": from_pennylane(qaoa, (4, 2)), "redundant": Ansatz("ry_ladder", 3, 4)}
    ansatz = of_name[name]
    angles = random_angles(ansatz, 1)[0]
    found = redundancy(ansatz, angles)

    assert len(found["redundant"]) == found["angles"] - found["independent"] > 0

    first_gates = {}
    for gate in ansatz.gates():
        text = f"angles{list(gate.slot or ())} ({gate.name} on wire {gate.wires[0]})"
        first_gates.setdefault(gate.slot, text)
    kept = [
        index
        for index, slot in enumerate(np.ndindex(*ansatz.angle_shape))
        if first_gates[slot] not in found["redundant"]
    ]
    jacobian = torch.autograd.functional.jacobian(
        lambda at: gate_probabilities(ansatz, at), angles
    ).flatten(1)

    assert len(kept) == found["independent"]
    assert torch.linalg.matrix_rank(jacobian[:, kept], rtol=1e-8) == len(kept)
    assert found["redundant"][0] in found.sentence


def test_features_that_symmetries_make_equal_are_named():
    """MaxCut on a ring of four: flips, turns and mirrors of a bit string keep its probability."""
    ansatz = from_pennylane(qaoa, (2, 2))
    images = {
        state: min(
            "".join(str((int(bit) + flip) % 2) for bit in (turned[::-1] if mirror else turned))
            for start in range(4)
            for turned in [state[start:] + state[:start]]
            for mirror in (False, True)
            for flip in (0, 1)
        )
        for state in (f"{index:04b}" for index in range(16))
    }
    orbits = [
        sorted(state for state in images if images[state] == image)
        for image in set(images.values())
    ]
    found = equal_features(ansatz)

    assert found["groups"] == sorted(orbits)
    assert found["features"] == 16
    assert found["distinct"] == len(orbits)
    assert "0000 and 1111" in found.sentence
    assert equal_features(Ansatz("ry_ladder", 3, 2))["groups"] == []


# -- gradients


@pytest.mark.parametrize("n_qubits", [1, 4])
def test_variance_of_one_layer_has_a_closed_form(n_qubits):
    """p is a product there, and for a uniform angle E sin^2 = 1/2, E cos^4(t/2) = 3/8."""
    (variance,) = gradient_variance([n_qubits], 1, samples=6000, seed=1)["variances"]
    assert variance == pytest.approx(1 / 2 * (3 / 2) ** (n_qubits - 1), rel=0.15)


def test_slopes_at_eight_layers_are_those_of_the_specification(monkeypatch):
    found = gradient_variance([5, 6, 8, 10], 8, samples=400)
    assert found["vanishes"] is False
    assert abs(found["slope"]) < 0.15
    assert all(0.9 < math.sqrt(variance) < 1.5 for variance in found["variances"])

    squares = sys.modules[CIRCUITS]._squared_slopes
    as_probabilities = lambda ansatz, *given: squares(ansatz, *given) / 4**ansatz.n_qubits  # noqa: E731
    monkeypatch.setattr(sys.modules[CIRCUITS], "_squared_slopes", as_probabilities)
    found = gradient_variance([5, 6, 8, 10], 8, samples=400)

    assert found["vanishes"] is True
    assert found["slope"] == pytest.approx(-2, abs=0.15)


def test_variances_depend_only_on_the_seed(monkeypatch):
    table = gradient_variance([2, 3, 5], 4, samples=20, seed=7)
    assert table["variances"][2] == gradient_variance([5], 4, samples=20, seed=7)["variances"][0]
    assert table != gradient_variance([2, 3, 5], 4, samples=20, seed=8)

    monkeypatch.setattr(sys.modules[CIRCUITS], "_AT_ONCE", 16)
    assert gradient_variance([2, 3, 5], 4, samples=20, seed=7)["variances"] == pytest.approx(
        table["variances"]
    )


# -- expressibility


def fidelities(n_pairs, n_qubits, field, seed=0):
    states = haar_states(2 * n_pairs, n_qubits, field, seed).view(n_pairs, 2, -1)
    return (states[:, 0].conj() * states[:, 1]).sum(1).abs().square().numpy()


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize("n_qubits", [1, 4, 8])
def test_random_states_are_at_the_floor_of_their_law(n_qubits, field):
    pairs = fidelities(4000, n_qubits, field)
    found = of_fidelities(pairs, n_qubits, field=field)
    assert found["divergence"] == pytest.approx(found["expected"], abs=4 * np.sqrt(2 * 49) / 8000)
    assert of_fidelities(pairs, n_qubits, field=OTHER[field])["divergence"] > 5 * found["expected"]


def test_divergence_falls_to_the_floor_with_depth_and_depends_only_on_the_seed(monkeypatch):
    shallow, deep = (
        expressibility(Ansatz("ry_ladder", 6, depth), samples=3000) for depth in (1, 16)
    )
    assert shallow["divergence"] > 30 * shallow["expected"]
    assert deep["divergence"] < deep["limit"]

    monkeypatch.setattr(sys.modules[CIRCUITS], "_AT_ONCE", 64)
    assert expressibility(Ansatz("ry_ladder", 6, 1), samples=3000) == shallow
    assert expressibility(Ansatz("ry_ladder", 6, 1), samples=3000, seed=1) != shallow
    assert expressibility(Ansatz("rxyz", 3, 1))["field"] == "complex"


def test_divergence_equals_scipy_in_bins_of_equal_probability():
    pairs = fidelities(500, 3, "real", seed=1) ** 1.5
    edges = stats.beta(0.5, 3.5).ppf(np.linspace(0, 1, 11))
    shares = np.histogram(pairs, [0, *edges[1:-1], 1])[0] / 500

    assert of_fidelities(pairs, 3, n_bins=10)["divergence"] == pytest.approx(
        stats.entropy(shares, np.full(10, 0.1))
    )
    assert of_fidelities(np.zeros(10), 3, n_bins=10)["divergence"] == pytest.approx(math.log(10))


@pytest.mark.parametrize(
    "n_pairs, n_bins",
    [
        (50, 50),
        (400, 20),
        (2000, 50),
    ],
)
def test_floor_equals_the_mean_of_simulated_counts(n_pairs, n_bins):
    counts = np.random.default_rng(0).multinomial(n_pairs, np.full(n_bins, 1 / n_bins), 4000)
    simulated = stats.entropy(counts / n_pairs, np.full((4000, n_bins), 1 / n_bins), axis=1)
    found = of_fidelities(np.random.default_rng(1).uniform(size=n_pairs), 2, n_bins)

    assert found["expected"] == pytest.approx(
        simulated.mean(), abs=4 * simulated.std() / np.sqrt(4000)
    )

    if n_pairs >= 10 * n_bins:
        assert (simulated < found["limit"]).mean() == pytest.approx(0.95, abs=0.02)


# -- entanglement


@settings(max_examples=15)
@given(
    st.integers(2, 5),
    st.integers(2, 3),
    st.sampled_from([*OTHER]),
    st.integers(0, 99),
)
def test_q_equals_pennylane_purities(n_qubits, samples, field, seed):
    states = haar_states(samples, n_qubits, field, seed)
    reduced = (
        qml.math.reduce_statevector(states.numpy().astype(complex), [wire])
        for wire in range(n_qubits)
    )
    found = meyer_wallach(states)
    expected = 2 * (1 - np.mean([qml.math.purity(each, [0]) for each in reduced]))

    assert found["mean"] == pytest.approx(expected, abs=1e-12)

    of_random = meyer_wallach(haar_states(2000, n_qubits, field))
    assert of_random["mean"] == pytest.approx(of_random["expected"], abs=5 * of_random["error"])
    assert is_json(found)


LADDER = Ansatz("ry_ladder", 3, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: porter_thomas(np.ones((3, 1))),
        lambda: porter_thomas(np.full(4, 0.5)),
        lambda: porter_thomas(np.array([np.nan, 1.0])),
        lambda: porter_thomas(torch.tensor([0.6 + 0j, 0.8])),
        lambda: redundancy(LADDER, torch.zeros(3, 2)),
        lambda: redundancy(LADDER, torch.full((2, 3), torch.nan)),
        lambda: gradient_variance([4], 8, 1),
        lambda: expressibility(LADDER, 20),
        lambda: meyer_wallach(torch.ones(3, 6)),
        lambda: meyer_wallach(torch.full((2, 4), 0.25)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ConfigError):
        call()
