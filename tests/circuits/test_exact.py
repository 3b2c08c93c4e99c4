"""Exact probabilities of any ansatz: against PennyLane, gate by gate, and parameter shift."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, Gate, exact, exact_probabilities, gate_probabilities, register_ansatz
from qpeft.circuits.gates import gate_columns
from qpeft.errors import ConfigError
from qpeft.testing import ansatz_contract

NAMES = ("ry_ladder", "two_design", "efficient_su2", "square", "qaa", "rxyz")
_GATES = st.sampled_from(["rx", "ry", "rz", "cx", "cz"])


def random_angles(ansatz, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(ansatz.angle_shape, generator=draw, dtype=torch.float64) * 2 - 1) * math.pi


def by_pennylane(ansatz, angles):
    qml = pytest.importorskip("pennylane")
    device = qml.device("default.qubit", wires=ansatz.n_qubits)
    queue = ansatz.to_pennylane()

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def run(angles):
        queue(angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return run(angles)


@pytest.mark.parametrize("name", NAMES)
def test_ansatz_contract(name):
    ansatz = Ansatz(name, 4, 2)
    ansatz_contract(
        lambda: ansatz,
        lambda angles: exact_probabilities(ansatz, angles),
        lambda angles: by_pennylane(ansatz, angles).detach(),
    )


@pytest.mark.parametrize("n_qubits", [1, 2, 3, 5, 6, 11])
def test_stages_equal_gates(n_qubits):
    ansatz = Ansatz("efficient_su2", n_qubits, 3)
    angles = random_angles(ansatz).requires_grad_()
    weights = torch.linspace(-1, 1, 2**n_qubits, dtype=torch.float64)
    found, expected = (run(ansatz, angles) for run in (exact_probabilities, gate_probabilities))
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    gradients = [torch.autograd.grad(p @ weights, angles)[0] for p in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.lists(st.tuples(_GATES, st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=14))
def test_any_order_of_gates(n_qubits, drawn):
    """Rotations and two-qubit gates in any order, also several of a wire in a row."""

    def layers(n_qubits, n_layers):
        slot = 0
        for name, wire, step in drawn:
            wires = (wire % n_qubits, (wire % n_qubits + 1 + (step - 1) % (n_qubits - 1)) % n_qubits)
            if name in ("cx", "cz"):
                yield [Gate(name, wires)]
            else:
                yield [Gate(name, wires[:1], (slot,))]
                slot += 1

    n_angles = sum(name[0] == "r" for name, _, _ in drawn)
    key = f"random {n_qubits} {drawn}".replace(":", "")
    register_ansatz(key, lambda n_qubits, n_layers: (n_angles,), layers)
    ansatz = Ansatz(key, n_qubits, 1)
    angles = random_angles(ansatz)
    torch.testing.assert_close(
        exact_probabilities(ansatz, angles), gate_probabilities(ansatz, angles), atol=1e-13, rtol=0
    )


# docs/extending.md: each gate of two wires as gates of an ansatz, where gate i has angles[i]
COMPOSED = {
    "IsingZZ": ([("cx",), ("rz", 1), ("cx",)], lambda t: [t]),
    "CRZ": ([("rz", 1), ("cx",), ("rz", 1), ("cx",)], lambda t: [t / 2, -t / 2]),
    "CRX": ([("rx", 1), ("cz",), ("rx", 1), ("cz",)], lambda t: [t / 2, -t / 2]),
}


@pytest.mark.parametrize("kind", COMPOSED)
def test_gates_composed_of_allowed_gates_are_pennylanes(kind):
    """The unitary, by its columns from all basis states, up to a phase."""
    qml = pytest.importorskip("pennylane")
    parts, angles_of = COMPOSED[kind]

    def layers(n_qubits, n_layers):
        slot = 0
        for name, *wires in parts:
            yield [Gate(name, tuple(wires), (slot,)) if wires else Gate(name, (0, 1))]
            slot += bool(wires)

    n_angles = sum(len(part) == 2 for part in parts)
    register_ansatz(f"composed {kind}", lambda n_qubits, n_layers: (n_angles,), layers)
    angles = torch.tensor(angles_of(0.7), dtype=torch.float64)
    found = gate_columns(Ansatz(f"composed {kind}", 2, 1), angles, range(4)).to(torch.complex128)
    expected = torch.as_tensor(qml.matrix(getattr(qml, kind)(0.7, wires=[0, 1]))).to(torch.complex128)
    assert abs((found.conj() * expected).sum().item()) == pytest.approx(4, abs=1e-12)


@pytest.mark.parametrize("name", ["ry_ladder", "two_design", "efficient_su2"])
def test_batch_equals_single_evaluations(name, monkeypatch):
    ansatz = Ansatz(name, 4, 3)
    angles = torch.rand(7, *ansatz.angle_shape, dtype=torch.float64)
    monkeypatch.setattr(exact, "_AT_ONCE", 3 * 2**4)  # three circuits at once
    expected = torch.stack([exact_probabilities(ansatz, each) for each in angles])
    torch.testing.assert_close(exact.batch_probabilities(ansatz, angles), expected, rtol=0, atol=1e-14)
    angles[2] = math.nan
    with pytest.raises(ConfigError, match="contain NaN or Inf"):
        exact.batch_probabilities(ansatz, angles)


def test_registered_simulation_is_used():
    ladder = Ansatz("ry_ladder", 3, 2)
    calls = []

    def fast(angles, n_qubits, n_layers):
        calls.append((n_qubits, n_layers))
        return exact_probabilities(ladder, angles)

    register_ansatz("fast ladder", lambda n, layers: (layers, n), lambda n, layers: ladder.layers(), fast)
    angles = random_angles(ladder)
    found = exact_probabilities(Ansatz("fast ladder", 3, 2), angles)
    assert torch.equal(found, exact_probabilities(ladder, angles))
    assert calls == [(3, 2)]


def test_efficient_su2_is_qiskits():
    library = pytest.importorskip("qiskit.circuit.library")
    quantum_info = pytest.importorskip("qiskit.quantum_info")
    ansatz = Ansatz("efficient_su2", 4, 2)
    angles = random_angles(ansatz)
    theirs = library.efficient_su2(4, reps=2, entanglement=[(0, 1), (1, 2), (2, 3), (3, 0)])
    state = quantum_info.Statevector(theirs.assign_parameters(angles.flatten().tolist()).reverse_bits())
    torch.testing.assert_close(exact_probabilities(ansatz, angles), torch.from_numpy(state.probabilities()))


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        (torch.zeros(2, 3), r"efficient_su2 with 3 qubits and 2 layers needs .* of shape \(3, 2, 3\), got"),
        (torch.zeros(3, 2, 3, dtype=torch.float16), "needs float32 or float64 angles"),
        (torch.full((3, 2, 3), math.nan), "circuit angles of efficient_su2 contain NaN or Inf"),
    ],
)
def test_invalid_angles_are_refused(angles, message):
    with pytest.raises(ConfigError, match=message):
        exact_probabilities(Ansatz("efficient_su2", 3, 2), angles)
