"""QAA's circuits compared with the gate-by-gate simulator; symmetries, shapes, special inputs."""

from functools import partial
from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from circuits import gate_expectations
from qpeft.circuits import Ansatz, amplitude, amplitude_expectations, simulate

ANSATZE = ("square", "qaa", "rxyz")
every_ansatz = pytest.mark.parametrize("ansatz", ANSATZE)
# one layer of "square" has a kernel of its own
every_depth = pytest.mark.parametrize("n_layers", [1, 2])


def problem(ansatz, n_layers, width, tokens=3, seed=0):
    """Inputs (T, d), angles (L, blocks, N), both with gradients, and the circuit."""
    draw = torch.Generator().manual_seed(seed)
    circuit = Ansatz(ansatz, amplitude.amplitude_qubits(width), n_layers)
    x = torch.randn(tokens, width, generator=draw, dtype=torch.float64)
    angles = (torch.rand(circuit.angle_shape, generator=draw, dtype=torch.float64) * 2 - 1) * pi
    return x.requires_grad_(), angles.requires_grad_(), circuit


def close(found, expected, tolerance=1e-12):
    assert_close(found, expected, rtol=0, atol=tolerance)


@settings(max_examples=40)
@given(
    st.sampled_from(ANSATZE),
    st.integers(1, 3),
    st.one_of(st.integers(1, 9), st.integers(1, 300)),
    st.integers(1, 9),
    st.sampled_from([2, 3, 5]),  # the last is the default
    st.sampled_from([1, 4, 128]),
    st.integers(0, 2**31),
)
def test_groups_and_chunks_of_any_size_agree_with_the_gates(
    ansatz, n_layers, width, tokens, group, chunk, seed
):
    for tables in (amplitude._tables, simulate._compiled):
        tables.cache_clear()
    x, angles, circuit = problem(ansatz, n_layers, width, tokens, seed)
    expected = gate_expectations(circuit, angles, x)
    weights = torch.randn_like(expected)
    of_slow = torch.autograd.grad(expected, (x, angles), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_GROUP", group)
        patch.setattr(amplitude, "_CHUNK", 1)
        patch.setattr(amplitude, "_TOKENS", chunk)
        expectations = amplitude_expectations(x, angles, ansatz)
        of_fast = torch.autograd.grad(expectations, (x, angles), weights)
        single = amplitude_expectations(x.detach().float(), angles.detach().float(), ansatz)
    close(expectations, expected)
    close(of_fast[1], of_slow[1], 1e-11)
    close(of_fast[0], of_slow[0], 1e-11 / min(1, x.detach().norm(dim=1).min().item()))
    close(single.double(), expected.detach(), 1e-5)


PAIRS = {  # of QCHFT's blocks on two and on five qubits
    ("mps", 29): [(0, 1), (1, 2), (2, 3), (3, 4)],
    ("all_pairs", 3): [(0, 1), (0, 1)],
    ("all_pairs", 29): [
        (0, 1),
        (2, 3),
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (0, 2),
        (1, 3),
        (2, 4),
        (0, 3),
        (1, 4),
        (0, 4),
    ],
}


@pytest.mark.parametrize("ansatz, width", PAIRS)
def test_blocks_on_pairs_are_the_strongly_entangling_layers_of_pennylane(ansatz, width):
    qml = pytest.importorskip("pennylane")
    x, angles, circuit = problem(ansatz, 2, width)

    @qml.qnode(qml.device("default.qubit"), interface="torch")
    def by_pennylane(row):
        qml.AmplitudeEmbedding(
            row,
            range(circuit.n_qubits),
            pad_with=0,
            normalize=True,
        )
        for block, pair in enumerate(PAIRS[ansatz, width]):
            qml.StronglyEntanglingLayers(angles.detach()[:, block], pair)
        return [qml.expval(qml.PauliZ(wire)) for wire in range(circuit.n_qubits)]

    expectations = amplitude_expectations(x, angles, ansatz)
    close(
        expectations,
        torch.stack([torch.stack(by_pennylane(row)) for row in x.detach()]),
        1e-10,
    )
    close(expectations, gate_expectations(circuit, angles, x))

    assert torch.autograd.gradcheck(partial(amplitude_expectations, ansatz=ansatz), (x, angles))


def random_angles(ansatz, width, n_layers=1, dtype=torch.float64):
    shape = Ansatz(ansatz, amplitude.amplitude_qubits(width), n_layers).angle_shape
    return ((torch.rand(shape, dtype=torch.float64) * 2 - 1) * pi).to(dtype)


@pytest.mark.parametrize(
    "width, expected",
    [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (768, 10),
        (1024, 10),
        (65536, 16),
    ],
)
def test_qubits_of_a_width(width, expected):
    assert amplitude.amplitude_qubits(width) == expected


@every_ansatz
def test_tiny_input_is_divided_by_the_smallest_norm(ansatz):
    x = torch.randn(2, 5, dtype=torch.float64)
    angles = random_angles(ansatz, 5)
    x /= x.norm(dim=-1, keepdim=True)
    expectations = amplitude_expectations(x * 1e-9, angles, ansatz)

    assert_close(
        expectations,
        amplitude_expectations(x, angles, ansatz) / 100,
        rtol=1e-9,
        atol=0,
    )

    tiny = (x * 1e-9).requires_grad_()
    amplitude_expectations(tiny, angles, ansatz).sum().backward()  # homogeneous of degree two there
    assert_close(
        (tiny.grad * tiny).sum(),
        2 * expectations.sum(),
        rtol=1e-9,
        atol=0,
    )


@every_depth
@pytest.mark.parametrize(
    "bad",
    [
        float("nan"),
        float("inf"),
    ],
)
def test_nonfinite_values_affect_only_their_token(n_layers, bad):
    x = torch.randn(3, 5)
    angles = random_angles("square", 5, n_layers, torch.float32)
    clean = amplitude_expectations(x, angles)
    x[1, 2] = bad
    expectations = amplitude_expectations(x, angles)

    assert expectations[1].isnan().all()
    assert torch.equal(expectations[[0, 2]], clean[[0, 2]])


@every_depth
def test_shapes_of_inputs_and_results(n_layers):
    angles = random_angles("square", 6, n_layers)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expectations = amplitude_expectations(x, angles)

    assert expectations.shape == (2, 3, 3)
    assert expectations.is_contiguous()
    assert_close(
        amplitude_expectations(x[1, 2], angles),
        expectations[1, 2],
        rtol=0,
        atol=1e-12,
    )
    assert torch.equal(amplitude_expectations(x.mT.contiguous().mT, angles), expectations)

    none = x[:0].requires_grad_()
    nothing = amplitude_expectations(none, angles)
    nothing.sum().backward()

    assert nothing.shape == (0, *expectations.shape[1:])
    assert none.grad.shape == none.shape
