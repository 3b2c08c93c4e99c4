"""Quantum-PEFT's circuit compared with PennyLane and dense matrices."""

from functools import partial

import pennylane as qml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits import dense_two_design
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
def test_columns_equal_those_of_pennylane(route, n_qubits, n_layers):
    angles = spec_angles(n_qubits, n_layers)
    found = route(angles, n_qubits, n_layers, range(2**n_qubits))
    torch.testing.assert_close(found, pennylane_columns(angles, n_qubits, n_layers), **CLOSE)


def random_signs(n_qubits, n_layers):
    return torch.randint(2, (2 * n_layers, 2**n_qubits), generator=torch.Generator().manual_seed(1)) * 2.0 - 1


@pytest.mark.parametrize("make_signs", [random_signs, lambda n, layers: torch.ones(2 * layers, 2**n)])
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 2), (2, 1), (4, 2), (5, 3), (6, 1)])
def test_signs_replace_the_cz_gates(make_signs, n_qubits, n_layers):
    angles, signs = random_angles(n_qubits, n_layers, 1)[0], make_signs(n_qubits, n_layers)
    found = two_design_columns(angles, n_qubits, n_layers, range(2**n_qubits), signs)
    expected = dense_two_design(angles.numpy(), n_qubits, n_layers, signs.double().numpy())
    torch.testing.assert_close(found, torch.from_numpy(expected), **CLOSE)


@pytest.mark.parametrize("n_layers", [1, 3])  # 3: both routes
@pytest.mark.parametrize("n_qubits", range(1, 7))
def test_first_column_satisfies_the_contract_of_an_ansatz(n_qubits, n_layers):
    def first_column(angles):
        return two_design_columns(angles, n_qubits, n_layers, [0])[:, 0].square()

    def dense_reference(angles):
        return torch.from_numpy(dense_two_design(angles.numpy(), n_qubits, n_layers)[:, 0] ** 2)

    ansatz_contract(partial(Ansatz, "two_design", n_qubits, n_layers), first_column, dense_reference)


@st.composite
def cases(draw):
    n_qubits, n_layers = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    columns = draw(st.lists(st.integers(0, 2**n_qubits - 1), min_size=1, max_size=6))
    return n_qubits, n_layers, columns, draw(st.integers(1, 3)), draw(st.integers(0, 99))


@given(cases())
def test_columns_and_gradients_equal_those_of_the_gates(case):
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
