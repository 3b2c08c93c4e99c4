"""The circuit as data, and its drawing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.circuits import Ansatz, Gate, count_angles
from qpeft.errors import ConfigError

sizes = st.tuples(st.integers(1, 12), st.integers(1, 9))


def test_gates_of_a_small_circuit_in_order():
    assert list(Ansatz("ry_ladder", 3, 2).gates()) == [
        Gate("ry", (0,), (0, 0)),
        Gate("ry", (1,), (0, 1)),
        Gate("ry", (2,), (0, 2)),
        Gate("cx", (0, 1)),
        Gate("cx", (1, 2)),
        Gate("ry", (0,), (1, 0)),
        Gate("ry", (1,), (1, 1)),
        Gate("ry", (2,), (1, 2)),
        Gate("cx", (0, 1)),
        Gate("cx", (1, 2)),
    ]


def test_one_qubit_has_no_ladder():
    assert [gate.name for gate in Ansatz("ry_ladder", 1, 3).gates()] == ["ry"] * 3


@given(sizes)
def test_angles_are_counted_as_the_gates_use_them(size):
    n_qubits, n_layers = size
    ansatz = Ansatz("ry_ladder", n_qubits, n_layers)
    slots = [gate.slot for gate in ansatz.gates() if gate.slot is not None]
    assert len(slots) == len(set(slots)) == ansatz.n_angles == count_angles("ry_ladder", n_qubits, n_layers)
    assert ansatz.angle_shape == (n_layers, n_qubits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", 2, 2), "unknown ansatz 'ring'; choose one of ry_ladder, two_design, square, qaa, rxyz"),
        (("ry_ladder", 0, 2), "n_qubits must be at least 1, got 0"),
        (("ry_ladder", 2, 0), "n_layers must be at least 1, got 0"),
    ],
)
def test_impossible_circuits_are_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        Ansatz(*arguments)
    assert str(caught.value).startswith(message)  # ansätze that other tests registered may follow


def test_drawing_of_a_small_circuit():
    expected = """\
    layer 0            layer 1
q0 ─┤ RY θ[0,0] ├─●────┤ RY θ[1,0] ├─●───
                  │                  │
q1 ─┤ RY θ[0,1] ├─⊕─●──┤ RY θ[1,1] ├─⊕─●─
                    │                  │
q2 ─┤ RY θ[0,2] ├───⊕──┤ RY θ[1,2] ├───⊕─"""
    assert Ansatz("ry_ladder", 3, 2).draw() == expected


@given(sizes)
def test_drawing_shows_every_wire_and_every_gate_of_the_shown_layers(size):
    n_qubits, n_layers = size
    lines = Ansatz("ry_ladder", n_qubits, n_layers).draw(width=10_000).splitlines()
    assert len(lines) == 2 * n_qubits
    wires = lines[1::2]
    assert [line.split()[0] for line in wires] == [f"q{wire}" for wire in range(n_qubits)]
    for wire, line in enumerate(wires):
        assert [f"θ[{layer},{wire}]" in line for layer in range(n_layers)] == [True] * n_layers
        assert line.count("●") == n_layers * (wire < n_qubits - 1)  # control of the next wire
        assert line.count("⊕") == n_layers * (wire > 0)
    assert len({len(line) for line in wires}) == 1


@given(sizes)
def test_connections_join_a_control_to_the_target_below_it(size):
    lines = Ansatz("ry_ladder", *size).draw(width=10_000).splitlines()[1:]
    ends = {(row, column) for row, line in enumerate(lines) for column, mark in enumerate(line) if mark == "●"}
    for row, column in ends:
        assert (lines[row + 1][column], lines[row + 2][column]) == ("│", "⊕")


@given(sizes, st.integers(20, 200))
def test_long_drawings_keep_the_first_and_last_layer_and_count_the_others(size, width):
    n_qubits, n_layers = size
    whole = Ansatz("ry_ladder", n_qubits, n_layers).draw(width=10_000).splitlines()
    short = Ansatz("ry_ladder", n_qubits, n_layers).draw(width=width).splitlines()
    shown = short[0].count("layer")
    assert f"layer {n_layers - 1}" in short[0]
    assert ("more" in short[0]) == (shown < n_layers)
    if shown < n_layers:
        assert f" {n_layers - shown} more " in short[0]
    one_layer = (max(map(len, whole)) - 4) // n_layers
    assert max(map(len, short)) <= max(width, 2 * one_layer + 20)
