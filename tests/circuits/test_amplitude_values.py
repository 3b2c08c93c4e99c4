"""QAA's circuits compared with PennyLane and the gate-by-gate simulator."""

from functools import lru_cache
from math import pi

import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import gate_amplitude_probabilities, gate_expectations
from qpeft.circuits import (
    Ansatz,
    amplitude,
    amplitude_expectations,
    amplitude_probabilities,
    amplitude_qubits,
    amplitude_run,
)
from qpeft.circuits.amplitude_readout import ring_tables
from qpeft.circuits.gates import gate_evolve

ANSATZE = ("square", "qaa", "rxyz")
READOUTS = {
    "z": (amplitude_expectations, gate_expectations),
    "probs": (amplitude_probabilities, gate_amplitude_probabilities),
}
every_ansatz = pytest.mark.parametrize("ansatz", ANSATZE)
every_readout = pytest.mark.parametrize("readout", READOUTS)
widths = [(n, d) for n in range(1, 7) for d in (2**n, 2**n - 1) if amplitude_qubits(d) == n] + [(1, 1)]


def problem(ansatz, n_layers, width, tokens=3, seed=0):
    """Inputs (T, d), angles (L, blocks, N), both with gradients, and the circuit."""
    draw = torch.Generator().manual_seed(seed)
    circuit = Ansatz(ansatz, amplitude_qubits(width), n_layers)
    x = torch.randn(tokens, width, generator=draw, dtype=torch.float64)
    angles = (torch.rand(circuit.angle_shape, generator=draw, dtype=torch.float64) * 2 - 1) * pi
    return x.requires_grad_(), angles.requires_grad_(), circuit


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_ring_on_basis_states():
    ring = ring_tables(4, torch.device("cpu"))
    assert ring.target[0b1000] == 0b0111
    eye, none = torch.eye(16, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.float64)
    assert torch.equal(eye[ring.source], gate_evolve(Ansatz("qaa", 4, 1), none, eye))
    assert torch.equal(amplitude_probabilities(eye[8], none, "qaa"), eye[7])


@lru_cache
def pennylane(circuit, readout):
    wires, rotations = range(circuit.n_qubits), {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ}

    @qml.qnode(qml.device("default.qubit", wires=wires), interface="torch", diff_method="backprop")
    def run(x, angles):
        qml.AmplitudeEmbedding(x, wires, pad_with=0.0, normalize=True)
        for gate in circuit.gates():
            if gate.slot is None:
                qml.CNOT(gate.wires)
            else:
                rotations[gate.name](angles[gate.slot], gate.wires[0])
        return [qml.expval(qml.PauliZ(wire)) for wire in wires] if readout == "z" else qml.probs(wires)

    return lambda x, angles: torch.stack(run(x, angles), -1) if readout == "z" else run(x, angles)


@every_ansatz
@every_readout
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize(("n_qubits", "width"), widths)
def test_values_and_gradients_equal_those_of_pennylane(ansatz, readout, n_layers, n_qubits, width):
    x, angles, circuit = problem(ansatz, n_layers, width)
    found = READOUTS[readout][0](x, angles, ansatz)
    expected = pennylane(circuit, readout)(x, angles)
    close(found, expected)
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad(found, (x, angles), weights)
    for one, other in zip(gradients, torch.autograd.grad(expected, (x, angles), weights), strict=True):
        close(one, other)


@settings(max_examples=40)
@given(
    st.sampled_from(ANSATZE),
    st.sampled_from(list(READOUTS)),
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 5, 9]),
    st.sampled_from([1, 4, 128]),
    st.integers(0, 2**31),
)
def test_groups_and_chunks_of_any_size_agree_with_the_gates(
    ansatz, readout, n_layers, width, tokens, group, chunk, seed
):
    x, angles, circuit = problem(ansatz, n_layers, width, tokens, seed)
    fast, slow = READOUTS[readout]
    expected = slow(circuit, angles, x)
    weights = torch.randn_like(expected)
    of_slow = torch.autograd.grad(expected, (x, angles), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amplitude, "GROUP", group)
        patch.setattr(amplitude_run, "CHUNK", 1)
        patch.setattr(amplitude_run, "TOKENS", chunk)
        found = fast(x, angles, ansatz)
        of_fast = torch.autograd.grad(found, (x, angles), weights)
        single = fast(x.detach().float(), angles.detach().float(), ansatz)
    close(found, expected)
    close(of_fast[1], of_slow[1], 1e-11)
    close(of_fast[0], of_slow[0], 1e-11 / min(1, x.detach().norm(dim=1).min().item()))
    close(single.double(), expected.detach(), 1e-5)
