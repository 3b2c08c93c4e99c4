"""Quantum-PEFT's circuit against PennyLane, recorded numbers and dense matrices."""

from functools import partial, reduce

import pennylane as qml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, count_angles, two_design_columns
from qpeft.circuits.gates import gate_columns
from qpeft.circuits.two_design_apply import two_design_apply
from qpeft.circuits.two_design_cut import cut_columns
from qpeft.testing import ansatz_contract

CLOSE = {"rtol": 0, "atol": 1e-10}
SIZES = [(n_qubits, n_layers) for n_qubits in range(2, 8) for n_layers in range(1, 5)]


def by_layers(angles, n_qubits, n_layers, columns):
    start = torch.eye(2**n_qubits, dtype=angles.dtype)[:, list(columns)]
    return two_design_apply(angles[None], n_qubits, n_layers, start[None])[0]


ROUTES = {
    "dispatch": two_design_columns,
    "cut": lambda angles, n_qubits, n_layers, columns: cut_columns(angles[None], n_qubits, n_layers, tuple(columns))[0],
    "layers": by_layers,
    "gates": lambda angles, n_qubits, n_layers, columns: gate_columns(
        Ansatz("two_design", n_qubits, n_layers), angles, columns
    ),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def spec_angles(n_qubits, n_layers):
    return 0.1 * torch.arange(1, 1 + count_angles("two_design", n_qubits, n_layers), dtype=torch.float64)


def pennylane_columns(angles, n_qubits, n_layers):
    wires = range(n_qubits)
    first, layers = angles[:n_qubits], angles[n_qubits:].view(n_layers, n_qubits - 1, 2)
    return qml.matrix(qml.SimplifiedTwoDesign(first, layers, wires=wires), wire_order=wires).real


def random_angles(n_qubits, n_layers, n_modules, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shape = (n_modules, count_angles("two_design", n_qubits, n_layers))
    return (torch.rand(shape, generator=draw, dtype=torch.float64) * 4 - 2) * torch.pi


@every_route
@pytest.mark.parametrize(("n_qubits", "n_layers"), SIZES)
def test_all_columns_are_pennylane_s(route, n_qubits, n_layers):
    angles = spec_angles(n_qubits, n_layers)
    found = route(angles, n_qubits, n_layers, range(2**n_qubits))
    torch.testing.assert_close(found, pennylane_columns(angles, n_qubits, n_layers), **CLOSE)


@pytest.mark.parametrize(
    ("n_qubits", "n_layers", "column", "rows", "expected"),
    [
        (2, 1, 0, slice(4), [0.9359970939, 0.2910910219, 0.1917563565, 0.0490403603]),
        (2, 1, 1, slice(4), [-0.2925822923, 0.9508600556, -0.0391732333, 0.0934142102]),
        (3, 1, 0, slice(4), [0.665880798, 0.3970259917, 0.5487900617, 0.1923053544]),
        (3, 1, 0, slice(4, 8), [0.1750475618, 0.1031281384, 0.1314573512, 0.0475725401]),
        (4, 2, 0, slice(4), [-0.2768971422, -0.4188976082, 0.3165503799, -0.1162891853]),
        (4, 2, 0, slice(15, 16), [0.0611208351]),
    ],
)
@every_route
def test_recorded_values(route, n_qubits, n_layers, column, rows, expected):
    found = route(spec_angles(n_qubits, n_layers), n_qubits, n_layers, [column])
    torch.testing.assert_close(found[rows, 0], torch.tensor(expected, dtype=found.dtype), **CLOSE)


def dense_turn(angle, wire, n_qubits):
    c, s = (angle / 2).cos(), (angle / 2).sin()
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    eye = torch.eye(2, dtype=angle.dtype)
    return reduce(torch.kron, [eye] * wire + [turn] + [eye] * (n_qubits - wire - 1))


def dense_cz(first, second, n_qubits):
    index = torch.arange(2**n_qubits)
    return 1 - 2 * ((index >> (n_qubits - 1 - first)) & (index >> (n_qubits - 1 - second)) & 1)


def dense_twin(angles, n_qubits, n_layers, signs):
    u = torch.eye(2**n_qubits, dtype=angles.dtype)
    angles = iter(angles.unbind())
    for wire in range(n_qubits):
        u = dense_turn(next(angles), wire, n_qubits) @ u
    for step, sign in enumerate(signs):
        u = sign[:, None] * u
        start = step % 2
        for wire in range(start, start + (n_qubits - start) // 2 * 2):
            u = dense_turn(next(angles), wire, n_qubits) @ u
    return u


def cz_signs(n_qubits, n_layers):
    signs = torch.ones(2 * n_layers, 2**n_qubits, dtype=torch.float64)
    for step in range(2 * n_layers):
        for wire in range(step % 2, n_qubits - 1, 2):
            signs[step] *= dense_cz(wire, wire + 1, n_qubits)
    return signs


def random_signs(n_qubits, n_layers):
    return torch.randint(2, (2 * n_layers, 2**n_qubits), generator=torch.Generator().manual_seed(1)) * 2.0 - 1


def ones(n_qubits, n_layers):
    return torch.ones(2 * n_layers, 2**n_qubits)


@pytest.mark.parametrize("twin", [random_signs, ones, cz_signs])
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 2), (2, 1), (4, 2), (5, 3), (6, 1)])
def test_twins_have_their_signs_in_place_of_the_cz_gates(twin, n_qubits, n_layers):
    angles, signs = random_angles(n_qubits, n_layers, 1)[0], twin(n_qubits, n_layers)
    found = two_design_columns(angles, n_qubits, n_layers, range(2**n_qubits), signs)
    torch.testing.assert_close(found, dense_twin(angles, n_qubits, n_layers, signs.double()), **CLOSE)


@pytest.mark.parametrize("n_layers", [1, 3])  # 3: both routes
@pytest.mark.parametrize("n_qubits", range(1, 7))
def test_the_first_column_keeps_the_contract_of_an_ansatz(n_qubits, n_layers):
    def first_column(angles):
        return two_design_columns(angles, n_qubits, n_layers, [0])[:, 0].square()

    def dense_reference(angles):
        return dense_twin(angles, n_qubits, n_layers, cz_signs(n_qubits, n_layers))[:, 0].square()

    ansatz_contract(partial(Ansatz, "two_design", n_qubits, n_layers), first_column, dense_reference)


@st.composite
def cases(draw):
    n_qubits, n_layers = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    columns = draw(st.lists(st.integers(0, 2**n_qubits - 1), min_size=1, max_size=6))
    return n_qubits, n_layers, columns, draw(st.integers(1, 3)), draw(st.integers(0, 99))


@given(cases())
def test_any_columns_of_any_batch_and_their_gradients_are_the_gates_(case):
    n_qubits, n_layers, columns, n_modules, seed = case
    angles = random_angles(n_qubits, n_layers, n_modules, seed).requires_grad_()
    weights = torch.randn(n_modules, 2**n_qubits, len(columns), dtype=torch.float64)
    by_gates = torch.stack([ROUTES["gates"](row, n_qubits, n_layers, columns) for row in angles])
    for found in (
        two_design_columns(angles, n_qubits, n_layers, columns),
        cut_columns(angles, n_qubits, n_layers, tuple(columns)),
    ):
        torch.testing.assert_close(found, by_gates, **CLOSE)
        slopes = [torch.autograd.grad(u, angles, weights, retain_graph=True)[0] for u in (found, by_gates)]
        torch.testing.assert_close(*slopes, **CLOSE)
    single = two_design_columns(angles[0], n_qubits, n_layers, torch.tensor(columns))
    torch.testing.assert_close(single, by_gates[0], **CLOSE)
