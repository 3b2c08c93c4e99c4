"""The circuit as data, and its drawing; invalid gates or angles of a user are refused before they
are used.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.backends import CircuitRun, ExactBackend, Jobs
from qpeft.circuits import (
    Ansatz,
    Gate,
    ansatz,
    exact_probabilities,
    gate_probabilities,
    register_ansatz,
    to_openqasm,
)
from qpeft.errors import ConfigError
from qpeft.testing import ansatz_contract

N_QUBITS = 3
N_LAYERS = 1
TURNS = [Gate("ry", (wire,), (wire,)) for wire in range(N_QUBITS)]


def register(layers, shape=(N_QUBITS,)):
    ansatz._families.pop("mine", None)
    register_ansatz("mine", lambda n_qubits, n_layers: shape, lambda n_qubits, n_layers: layers)
    return Ansatz("mine", N_QUBITS, N_LAYERS)


@pytest.fixture(autouse=True)
def _forget():
    yield
    ansatz._families.pop("mine", None)


RZZ = Gate("rzz", (0, 1), (0,))
BAD_GATES = {
    "two-wire gate": ([[*TURNS[1:], RZZ]], "rzz.* is unknown; allowed are rx, ry, rz with"),
    "one-wire gate": ([[*TURNS, Gate("h", (0,))]], "is unknown"),
    "unused angle": ([TURNS[:2]], r"angle \[2\] of angle_shape \(3,\)"),
    "wire": ([[*TURNS, Gate("cz", (2, 3))]], "wires of 0 to 2"),
    "negative wire": ([[*TURNS, Gate("cz", (0, -1))]], "wires of 0 to 2"),
    "same wire": ([[*TURNS, Gate("cx", (1, 1))]], "two different wires"),
    "one wire of two": ([[*TURNS, Gate("cx", (1,))]], "two different wires"),
    "two wires of a rotation": ([[*TURNS[1:], Gate("rx", (0, 1), (0,))]], "one wire"),
    "a wire twice": ([[*TURNS[1:], Gate("rx", (0, 0), (0,))]], "one wire"),
    "wire without tuple": ([[*TURNS, Gate("cx", 0)]], "tuple of integers"),
    "slot outside": ([[*TURNS, Gate("rx", (0,), (3,))]], r"angle_shape is \(3,\)"),
    "negative slot": (
        [[*TURNS[:2], Gate("rx", (0,), (-1,))]],
        r"index of an angle: angle_shape is \(3,\)",
    ),
    "slot of other axes": (
        [[*TURNS, Gate("rx", (0,), (0, 0))]],
        r"index of an angle: angle_shape is \(3,\)",
    ),
    "slot without tuple": ([[*TURNS[:2], Gate("rx", (0,), 2)]], "tuple of integers"),
    "rotation without angle": ([[*TURNS, Gate("rz", (0,))]], "needs an angle"),
    "cz with angle": ([[*TURNS[:2], Gate("cz", (0, 1), (2,))]], "has an angle"),
    "no layers": (TURNS, "its functions raised"),
    "no gate": ([[("ry", (0,), (0,))]], "its functions raised"),
    "nothing": (None, "its functions raised TypeError"),
}
USES = {
    "exact": lambda mine: exact_probabilities(mine, torch.zeros(N_QUBITS)),
    "gates": lambda mine: gate_probabilities(mine, torch.zeros(N_QUBITS)),
    "openqasm": to_openqasm,
    "drawing": lambda mine: mine.draw(),
    "backend": lambda mine: CircuitRun(mine, Jobs(ExactBackend()))(torch.zeros(N_QUBITS)),
}


@pytest.mark.parametrize("layers, message", BAD_GATES.values(), ids=BAD_GATES)
def test_invalid_gates_are_refused(layers, message):
    """The message names the ansatz, its size and what is wrong with the gate."""
    mine = register(layers)
    with pytest.raises(ConfigError, match=rf"^ansatz mine with 3 qubits and 1 layers: .*{message}"):
        exact_probabilities(mine, torch.zeros(N_QUBITS))
    with pytest.raises(AssertionError, match=message):
        ansatz_contract(lambda: mine, lambda angles: angles)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_refuses_an_unknown_gate(use):
    """Whichever part of the program sees the gates first."""
    use(register([TURNS]))
    with pytest.raises(ConfigError, match=r"'rzz'.* is unknown"):
        use(register([[*TURNS[1:], RZZ]]))


@pytest.mark.parametrize("raised", [KeyError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("in_shape", [False, True])
def test_whatever_a_users_function_raises_names_the_ansatz(raised, in_shape):
    """Also what is no Exception, which would end the program without a message."""

    def broken(n_qubits, n_layers):
        raise raised("pairs")

    register_ansatz("mine", broken if in_shape else lambda n_qubits, n_layers: (n_qubits,), broken)
    with pytest.raises(
        ConfigError, match=rf"ansatz mine .*: its functions raised {raised.__name__}: .*pairs"
    ):
        exact_probabilities(Ansatz("mine", N_QUBITS, 1), torch.zeros(N_QUBITS))


def test_pickled_ansatz_whose_gates_have_changed_is_refused():
    stored = pickle.dumps(register([TURNS]))
    assert pickle.loads(stored) == Ansatz("mine", N_QUBITS, N_LAYERS)  # noqa: S301 it was made here

    register([TURNS[::-1]])
    with pytest.raises(ConfigError, match=r"gates of ansatz mine .* have changed"):
        pickle.loads(stored)  # noqa: S301


def test_gates_that_differ_from_call_to_call_are_refused():
    """They trained, and the saved adapter could not be loaded."""
    scales = iter(range(1, 100))
    register_ansatz(
        "mine",
        lambda n, _: (n,),
        lambda n, _: [[Gate("ry", (w,), (w,), float(next(scales))) for w in range(n)]],
    )
    with pytest.raises(ConfigError, match="other gates in another call"):
        list(Ansatz("mine", 2, 1).gates())


@pytest.mark.parametrize("shape", [3, [3], (), (3.0,), (-3,), None, ((3,),)])
def test_invalid_angle_shape_is_refused(shape):
    with pytest.raises(
        ConfigError, match=r"ansatz mine .*: angle_shape returned .*; return a tuple of integers"
    ):
        _ = register([TURNS], shape).angle_shape


def test_functions_are_called_twice_for_each_size_to_compare():
    """Later registrations change new circuits, and none that is in use."""
    seen = []
    register_ansatz("mine", lambda *size: (N_QUBITS,), lambda *size: [seen.append(size), TURNS][1:])
    mine = Ansatz("mine", N_QUBITS, N_LAYERS)
    for _ in range(3):
        exact_probabilities(mine, torch.zeros(N_QUBITS))
        list(mine.gates())

    assert seen == 2 * [(N_QUBITS, N_LAYERS)]
    with pytest.raises(ConfigError, match="of 0 to 1"):
        list(Ansatz("mine", 2, 1).gates())

    gates = list(mine.gates())
    register([[*TURNS[1:], RZZ]])  # registered again under the same name
    assert list(mine.gates()) == gates  # an adapter that is being trained keeps its circuit
    assert list(copy.deepcopy(mine).gates()) == gates
    with pytest.raises(ConfigError, match="is unknown"):
        list(Ansatz("mine", N_QUBITS, N_LAYERS).gates())


sizes = st.tuples(st.integers(1, 12), st.integers(1, 9))
SHAPES = {  # of the angles
    "ry_ladder": lambda n, layers: (layers, n),
    "two_design": lambda n, layers: (n + 2 * layers * (n - 1),),
    "square": lambda n, layers: (layers, 3, n),
    "qaa": lambda n, layers: (layers, 1, n),
    "rxyz": lambda n, layers: (layers, 3, n),
}


@pytest.mark.parametrize(
    "name, n_qubits, expected",
    [
        ("ry_ladder", 3, "ry0 ry1 ry2 cx01 cx12"),
        ("ry_ladder", 1, "ry0"),
        ("two_design", 3, "ry0 ry1 ry2 cz01 ry0 ry1 cz12 ry1 ry2"),
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
