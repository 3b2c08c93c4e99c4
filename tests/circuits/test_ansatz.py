"""The circuit as data, and its drawing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.circuits import Ansatz

sizes = st.tuples(st.integers(1, 12), st.integers(1, 9))
SHAPES = {  # of the angles
    "ry_ladder": lambda n, layers: (layers, n),
    "two_design": lambda n, layers: (n + 2 * layers * (n - 1),),
    "efficient_su2": lambda n, layers: (layers + 1, 2, n),
    "square": lambda n, layers: (layers, 3, n),
    "qaa": lambda n, layers: (layers, 1, n),
    "rxyz": lambda n, layers: (layers, 3, n),
}


@pytest.mark.parametrize(
    ("name", "n_qubits", "expected"),
    [
        ("ry_ladder", 3, "ry0 ry1 ry2 cx01 cx12"),
        ("ry_ladder", 1, "ry0"),
        ("two_design", 3, "ry0 ry1 ry2 cz01 ry0 ry1 cz12 ry1 ry2"),
        ("efficient_su2", 2, "ry0 ry1 rz0 rz1 cx01 ry0 ry1 rz0 rz1"),
        ("efficient_su2", 3, "ry0 ry1 ry2 rz0 rz1 rz2 cx01 cx12 cx20 ry0 ry1 ry2 rz0 rz1 rz2"),
        ("square", 2, "ry0 ry1 rz0 rz1 cx01 cx10 ry0 ry1"),
        ("square", 1, "ry0 rz0 ry0"),
        ("qaa", 2, "ry0 ry1 cx01 cx10"),
        ("rxyz", 2, "rx0 rx1 ry0 ry1 rz0 rz1 cx01 cx10"),
    ],
)
def test_gates_act_in_order(name, n_qubits, expected):
    gates = Ansatz(name, n_qubits, 1).gates()
    assert " ".join(gate.name + "".join(map(str, gate.wires)) for gate in gates) == expected


@given(st.sampled_from(list(SHAPES)), sizes)
def test_angles_are_used_once_in_row_major_order(name, size):
    ansatz = Ansatz(name, *size)
    slots = [gate.slot for gate in ansatz.gates() if gate.slot is not None]
    assert ansatz.angle_shape == SHAPES[name](*size)
    assert slots == list(np.ndindex(ansatz.angle_shape))
    assert ansatz.n_angles == len(slots)


def test_drawing_shows_gates_in_order_and_connects_control_and_target():
    expected = """\
q0 ─RY(θ[0,0])──●──RY(θ[1,0])─────●────
q1 ─RY(θ[0,1])──⊕──●──RY(θ[1,1])──⊕──●─
q2 ─RY(θ[0,2])─────⊕──RY(θ[1,2])─────⊕─"""
    assert Ansatz("ry_ladder", 3, 2).draw() == expected
    assert max(map(len, Ansatz("ry_ladder", 11, 9).draw(width=60).splitlines())) == 60
