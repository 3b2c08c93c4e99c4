"""Circuits from and to PennyLane, Qiskit and OpenQASM 3: equal states, probabilities and gradients."""

import math
import warnings
from functools import partial

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import qasm3
from qiskit.circuit import AnnotatedOperation, InverseModifier, Parameter, QuantumCircuit
from qiskit.circuit.library import (
    MCXGate,
    PauliEvolutionGate,
    RXGate,
    efficient_su2,
    real_amplitudes,
)
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.synthesis import MatrixExponential, QDrift
from torch.testing import assert_close

from circuits import ANSATZE, random_angles, value_and_gradient
from qpeft.circuits import (
    Ansatz,
    Gate,
    exact_probabilities,
    from_openqasm,
    from_pennylane,
    from_qiskit,
    to_openqasm,
    to_pennylane,
    to_qiskit,
)
from qpeft.circuits.reference import gate_evolve
from qpeft.errors import ConfigError
from qpeft.testing import ansatz_contract
from qpeft_lab.cli.circuits import depth

WEIGHTS = torch.linspace(-1, 2, 16, dtype=torch.float64)


def draw(shape):
    return torch.from_numpy(np.random.default_rng(3).uniform(-3, 3, shape))


def qnode(layers, n_qubits, device=None):
    def run(angles):
        layers(angles)
        return qml.probs(range(n_qubits))

    return qml.QNode(
        run, qml.device("default.qubit", wires=device), interface="torch", diff_method="backprop"
    )


def strongly_entangling(angles):
    qml.StronglyEntanglingLayers(angles, wires=range(4))


def qaoa(angles):
    """One angle of many gates, with factors."""
    cost = sum(0.5 * qml.Z(wire) @ qml.Z((wire + 1) % 4) for wire in range(4))
    for wire in range(4):
        qml.Hadamard(wire)
    for gamma, beta in zip(angles[0], angles[1], strict=True):
        qml.qaoa.cost_layer(gamma, cost)
        qml.qaoa.mixer_layer(beta, qml.qaoa.x_mixer(range(4)))


def many_gates(angles):
    qml.X(2)
    qml.CRX(angles[0], wires=[2, 0])
    qml.Rot(angles[1], 0.3, angles[2] / 3, wires=1)
    qml.RY(0.0, wires=1)
    qml.IsingXY(1 - 2 * angles[0], wires=[0, 1])
    qml.Barrier([0, 1])
    qml.SWAP([0, 3])
    qml.PhaseShift(angles[1], wires=3)
    qml.Toffoli([0, 1, 2])
    qml.Hadamard(3)


PENNYLANE = {
    "strongly entangling": (strongly_entangling, (2, 4, 3)),
    "qaoa": (qaoa, (2, 2)),
    "many gates": (many_gates, (3,)),
}


@pytest.mark.parametrize("layers, shape", PENNYLANE.values(), ids=PENNYLANE)
def test_qnode_of_pennylane(layers, shape):
    theirs = qnode(layers, 4)
    ansatz = from_pennylane(theirs, shape)
    assert ansatz.angle_shape == shape
    assert ansatz.n_qubits == 4

    found, expected = (
        value_and_gradient(run, draw(shape), WEIGHTS)
        for run in (partial(exact_probabilities, ansatz), theirs)
    )
    assert_close(found, expected, rtol=0, atol=1e-6)

    ansatz_contract(lambda: ansatz, lambda angles: theirs(angles).detach())
    assert from_pennylane(layers, shape) == ansatz  # a function without a device


def test_tape_has_its_trainable_parameters_in_order():
    with qml.queuing.AnnotatedQueue() as queue:
        qml.RX(0.2, wires="b")
        qml.RY(0.7, wires="a")
        qml.RY(0.1, wires="b")
        qml.CNOT(["b", "a"])
    tape = qml.tape.QuantumScript.from_queue(queue)
    tape.trainable_params = [0, 2]

    assert [*from_pennylane(tape).gates()] == [
        Gate("rx", (0,), (0,)),
        Gate("ry", (1,), shift=0.7),
        Gate("ry", (0,), (1,)),
        Gate("cx", (0, 1)),
    ]


@pytest.mark.parametrize("ansatz", [Ansatz("square", 3, 2), Ansatz("two_design", 3, 2)], ids=str)
def test_tape_with_a_vector_of_angles_or_the_gates_of_an_ansatz(ansatz):
    angles = random_angles(ansatz)
    tape = qml.tape.make_qscript(to_pennylane(ansatz))(angles)
    back = from_pennylane(tape)

    assert_close(exact_probabilities(back, angles.flatten()), exact_probabilities(ansatz, angles))

    weights = draw((2, 4, 3))
    template = qml.tape.QuantumScript([qml.StronglyEntanglingLayers(weights, wires=range(4))])
    assert_close(
        exact_probabilities(from_pennylane(template), weights.flatten()),
        exact_probabilities(from_pennylane(strongly_entangling, (2, 4, 3)), weights),
    )


def test_wires_are_those_of_the_device():
    ansatz = from_pennylane(qnode(lambda angles: qml.RY(angles[0], wires=1), 3, device=3), (1,))
    assert ansatz.n_qubits == 3
    assert [gate.wires for gate in ansatz.gates()] == [(1,)]


QISKIT = {
    "efficient_su2": efficient_su2(4, reps=2),
    "real_amplitudes": real_amplitudes(4, reps=2, entanglement="full"),
}


@pytest.mark.parametrize("circuit", QISKIT.values(), ids=QISKIT)
def test_circuit_of_qiskit(circuit):
    def theirs(angles):
        return Statevector(circuit.assign_parameters(list(angles)).reverse_bits()).probabilities()

    ansatz = from_qiskit(circuit)
    angles = draw(circuit.num_parameters)
    p, slope = value_and_gradient(partial(exact_probabilities, ansatz), angles, WEIGHTS)

    np.testing.assert_allclose(p, theirs(angles.numpy()), rtol=0, atol=1e-6)

    shifts = np.eye(len(angles)) * np.pi / 2
    expected = [
        (theirs(angles.numpy() + one) - theirs(angles.numpy() - one)) @ WEIGHTS.numpy() / 2
        for one in shifts
    ]
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-6)


def evolution(*terms, weights=(0.7, 0.3), **settings):
    return PauliEvolutionGate(SparsePauliOp(terms, weights), time=0.9, **settings)


def with_gates(*gates):
    """A circuit of three qubits with these gates between rotations."""
    circuit = QuantumCircuit(3)
    for wire in range(3):
        circuit.ry(0.3 + wire, wire)
    for gate in gates:
        circuit.append(gate, range(gate.num_qubits))
    circuit.rx(Parameter("a"), 0)
    circuit.delay(100, 1)
    circuit.h(range(3))
    return circuit


@pytest.mark.filterwarnings("ignore")  # of scipy, for an evolution
def test_evolutions_and_modified_gates_of_qiskit():
    circuit = with_gates(
        evolution("ZZ", "IZ"),
        evolution("ZZ", "XX").control(1),
        evolution("XX", "ZI").definition,
        MCXGate(2, ctrl_state="01"),
        RXGate(0.4).control(2, ctrl_state=1, annotated=True),
        RXGate(0.4).power(-0.5, annotated=True),
    )
    expected = Statevector(circuit.assign_parameters([0.6]).reverse_bits()).probabilities()
    found = exact_probabilities(from_qiskit(circuit), torch.tensor([0.6], dtype=torch.float64))

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["cz", "ry", "barrier", "delay", "block"])
@pytest.mark.parametrize("is_inner", [False, True])
def test_operation_with_the_name_of_another_gate_is_refused(name, is_inner):
    """Qiskit decomposes by names, so it would be taken for that gate."""
    own = QuantumCircuit(2, name=name)
    own.h(0)
    own.cx(0, 1)
    outer = QuantumCircuit(2, name="outer")
    outer.append(own.to_gate(), [0, 1])
    circuit = QuantumCircuit(2)
    circuit.rx(Parameter("a"), 0)
    circuit.append((outer if is_inner else own).to_gate(), [0, 1])
    if name != "block":
        with pytest.raises(ConfigError, match=f"with the name of Qiskit's gate {name};"):
            from_qiskit(circuit)
        return
    expected = Statevector(circuit.assign_parameters([0.6]).reverse_bits()).probabilities()
    found = exact_probabilities(from_qiskit(circuit), torch.tensor([0.6], dtype=torch.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_operation_with_the_name_of_another_gate_is_refused_in_openqasm_and_pennylane():
    turns = "gate ry(t) x { U(6.283185307179586 * t, 0, 0) x; }"
    text = f"OPENQASM 3.0; input float[64] a; qubit[2] q; {turns} ry(a) q[0];"
    with pytest.raises(ConfigError, match="with the name of Qiskit's gate ry;"):
        from_openqasm(text)

    class RY(qml.operation.Operation):
        num_params = 1
        num_wires = 1

        @staticmethod
        def compute_decomposition(theta, wires):
            return [qml.RX(2 * theta, wires=wires)]

    with pytest.raises(ConfigError, match="with the name of PennyLane's gate RY;"):
        from_pennylane(lambda x: RY(x[0], wires=0), (1,))


def test_expressions_and_measurements_of_qiskit():
    a = Parameter("a")
    b = Parameter("b")
    circuit = QuantumCircuit(2, global_phase=0.4)
    circuit.h(0)
    circuit.barrier()
    circuit.crz(2 * b - 0.5, 0, 1)
    circuit.ry(a / 3, 1)
    circuit.swap(0, 1)
    expected = Statevector(
        circuit.assign_parameters({a: 0.3, b: -0.8}).reverse_bits()
    ).probabilities()
    circuit.measure_all()
    found = exact_probabilities(
        from_qiskit(circuit), torch.tensor([0.3, -0.8], dtype=torch.float64)
    )

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*ANSATZE, "qaoa"])
def test_round_trips(name):
    """Of more than ten angles, whose names do not sort by index; and with factors, constants and
    shared angles.
    """
    ansatz = from_pennylane(qaoa, (2, 2)) if name == "qaoa" else Ansatz(name, 3, 4)
    # Qiskit changes the order of gates on different wires
    gates = sorted(gate[:2] for gate in ansatz.gates())
    for back in (
        from_pennylane(to_pennylane(ansatz), ansatz.angle_shape),
        from_qiskit(to_qiskit(ansatz)),
        from_openqasm(to_openqasm(ansatz)),
    ):
        assert sorted(gate[:2] for gate in back.gates()) == gates
        found = exact_probabilities(back, draw(ansatz.angle_shape).view(back.angle_shape))
        assert_close(
            found, exact_probabilities(ansatz, draw(ansatz.angle_shape)), rtol=0, atol=1e-12
        )


def test_openqasm_with_and_without_inputs():
    text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; h q[0]; cx q[0], q[1];'
    found = exact_probabilities(from_openqasm(text), torch.zeros(0, dtype=torch.float64))
    np.testing.assert_allclose(found, [0.5, 0, 0, 0.5], atol=1e-15)

    text = """OPENQASM 3.0; include "stdgates.inc";
    /*
    input angle a;
    */
    input float[64] first; input angle a; qubit q;"""
    text += "rx(first) q; ry(2 * a) q;"
    assert [(gate.slot, gate.scale) for gate in from_openqasm(text).gates()] == [
        ((0,), 1),
        ((1,), 2),
    ]


def qiskit_circuit(build):
    circuit = QuantumCircuit(2, 1)
    build(circuit)
    return circuit


UNUSABLE = {  # functions of two angles
    "square": (lambda t: qml.RX(t[0] ** 2, wires=0), "multiple of one parameter"),
    "kink": (lambda t: qml.RX(abs(t[0]), wires=0), "multiple of one parameter"),
    "other gates": (lambda t: (qml.RX if t[0] > 0 else qml.RY)(t[1], wires=0), "other gates"),
    "two parameters": (lambda t: qml.RX(t[0] + t[1], wires=0), "multiple of one"),
    "measurement inside": (
        lambda t: (qml.RX(t[0], wires=0), qml.measure(0), qml.RX(t[1], wires=0)),
        "MidMeasure.*remove measurements inside",
    ),
    "no parameters": (lambda t: qml.CNOT([0, 1]), "no parameters"),
    "inputs": (lambda x, t: qml.RX(t[0], 0), "needs x, t; give one"),
    "channel": (lambda t: (qml.RX(t[0], wires=0), qml.BitFlip(0.1, wires=0)), "BitFlip"),
    "no circuit": (3, "circuit fails .* TypeError"),
    "small shape": (lambda t: qml.RX(t[2], wires=0), "circuit fails .* IndexError"),
}
REFUSED = {
    name: (partial(from_pennylane, layers, (2,)), message)
    for name, (layers, message) in UNUSABLE.items()
} | {
    "empty shape": (lambda: from_pennylane(qaoa, (0, 2)), r"got \(0, 2\)"),
    "no shape": (lambda: from_pennylane(strongly_entangling), "shape"),
    "unused parameter": (
        lambda: exact_probabilities(from_pennylane(qaoa, (3, 2)), draw((3, 2))),
        r"angle \[2, 0\]",
    ),
    "qiskit square": (
        lambda: from_qiskit(qiskit_circuit(lambda c: c.rx(Parameter("a") ** 2, 0))),
        "multiple of one",
    ),
    "qiskit measurement": (
        lambda: from_qiskit(qiskit_circuit(lambda c: (c.measure(0, 0), c.x(0)))),
        "measure",
    ),
    **{
        f"evolution {name}": (
            lambda gate=gate: from_qiskit(with_gates(gate)),
            r"exp\(-it .* exact evolution",
        )
        for name, gate in {
            "controlled": evolution("XX", "ZI").control(1),
            "modified": AnnotatedOperation(evolution("XX", "ZI"), InverseModifier()),
            "list": PauliEvolutionGate([SparsePauliOp("ZZ"), SparsePauliOp("XI")]),
            "drawn": evolution("ZZ", "IZ", synthesis=QDrift()),
            "inside": with_gates(evolution("XX", "ZI")).assign_parameters([0.6]).to_instruction(),
        }.items()
    },
    "qiskit without derivative": (
        lambda: from_qiskit(qiskit_circuit(lambda c: c.rx(Parameter("a").sign(), 0))),
        "multiple of one",
    ),
    **{
        f"qiskit parameters {order!a}": (
            partial(from_qiskit, efficient_su2(1, reps=0), order),
            "give each of circuit.parameters once",
        )
        for order in ([], ["θ[0]", "θ[1]"])
    },
    "qiskit state": (lambda: from_qiskit(qiskit_circuit(lambda c: (c.h(0), c.reset(0)))), "reset"),
    "text": (lambda: from_openqasm("qubit q; rx(0.1 q;"), "from_openqasm"),
    "gate's name": (
        lambda: from_openqasm('OPENQASM 3.0; include "stdgates.inc"; input float z; qubit q;'),
        "name of a gate",
    ),
    "evolution as a matrix": (
        lambda: from_qiskit(
            with_gates(
                PauliEvolutionGate(
                    SparsePauliOp("ZZ"), Parameter("t"), synthesis=MatrixExponential()
                )
            )
        ),
        "cannot decompose",
    ),
    "size": (
        lambda: list(Ansatz(from_qiskit(QISKIT["efficient_su2"]).name, 5, 1).gates()),
        "n_qubits=4",
    ),
}


@pytest.mark.parametrize("use, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(use, message):
    with pytest.raises(ConfigError, match=message):
        use()


# -- the other direction


every_ansatz = pytest.mark.parametrize("name", ANSATZE)


def state_of(ansatz, angles, wires=None, order=None):
    circuit = to_pennylane(ansatz)

    @qml.qnode(qml.device("default.qubit", wires=wires or ansatz.n_qubits))
    def run(angles):
        circuit(angles, order or wires)
        return qml.state()

    return run(angles)


STATES = {  # Qiskit counts qubit 0 as the least significant bit
    "pennylane": state_of,
    "qiskit": lambda ansatz, angles: (
        Statevector(
            to_qiskit(ansatz).assign_parameters(angles.flatten().numpy()).reverse_bits()
        ).data
    ),
    "openqasm": (
        lambda ansatz, angles: (
            Statevector(qasm3.loads(to_openqasm(ansatz, angles)).reverse_bits()).data
        )
    ),
}


@every_ansatz
@pytest.mark.parametrize("tool", STATES)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 2)),
    scale=st.sampled_from([math.pi, 1.0, 1e-3, 1e-12, 1e5]),
)
@settings(max_examples=6)
def test_states_equal_those_of_the_gates(tool, name, size, scale):
    """With signs and phases, so that no rotation is turned the other way round; no digit of an
    angle is lost.
    """
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz, scale=scale)
    expected = gate_evolve(ansatz, angles)[:, 0].numpy()

    np.testing.assert_allclose(
        STATES[tool](ansatz, angles), expected, rtol=0, atol=1e-9 if scale > 10 else 1e-12
    )


def test_wires_have_any_labels_in_any_order():
    ansatz = Ansatz("ry_ladder", 3, 2)
    angles = random_angles(ansatz)
    expected = gate_evolve(ansatz, angles)[:, 0].to(torch.complex128)

    assert_close(state_of(ansatz, angles, ["b", 7, "a"]), expected, atol=1e-12, rtol=0)

    swapped = expected.reshape(2, 2, 2).permute(2, 1, 0).flatten()
    assert_close(state_of(ansatz, angles, order=[2, 1, 0]), swapped, atol=1e-12, rtol=0)
    assert (swapped - expected).abs().max() > 0.01


@every_ansatz
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 5)))
@settings(max_examples=10)
def test_depth_equals_that_of_qiskit(name, size):
    ansatz = Ansatz(name, *size)
    assert depth(ansatz) == to_qiskit(ansatz).depth()


@pytest.mark.parametrize(
    "arguments",
    [
        *((torch.zeros(shape),) for shape in ((2,), (3, 2), (4, 1, 2, 3), ())),
        *((torch.zeros(2, 3), wires) for wires in ([0, 1], range(4))),
    ],
    ids=str,
)
def test_angles_and_wires_of_other_numbers_are_refused(arguments):
    with pytest.raises(ConfigError):
        to_pennylane(Ansatz("ry_ladder", 3, 2))(*arguments)


@pytest.mark.parametrize(
    "measure, warns",
    [
        (lambda: qml.probs(), False),
        (lambda: qml.probs(wires=[0, 1]), False),
        (lambda: qml.probs(wires=[1, 0]), True),
        (lambda: qml.probs(wires=[0]), True),
        (lambda: qml.probs(op=qml.X(0) @ qml.X(1)), True),
        (lambda: qml.expval(qml.Z(0)), True),
        (lambda: qml.state(), True),
    ],
)
def test_measurements_that_are_not_used_are_named(measure, warns):
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(angles):
        qml.RY(angles[0], wires=0)
        qml.CNOT([0, 1])
        return measure()

    with warnings.catch_warnings(record=True, action="always") as caught:
        from_pennylane(circuit, (1,))
    assert [("is not used" in str(each.message)) for each in caught] == [True] * warns

    with pytest.warns(UserWarning, match="merge_rotations.* not used"):
        from_pennylane(qml.transforms.merge_rotations(circuit), (1,))


@pytest.mark.parametrize("order, warns", [([0, 1, 2], False), ([2, 0, 1], True)])
def test_order_of_the_wires_of_a_device_is_named(order, warns):
    """Its bare `qml.probs()` has the basis states in this order."""

    @qml.qnode(qml.device("default.qubit", wires=order))
    def circuit(angles):
        qml.RY(angles[0], wires=1)
        return qml.probs()

    with warnings.catch_warnings(record=True, action="always") as caught:
        from_pennylane(circuit, (1,))
    assert [("qml.probs([0, 1, 2])" in str(each.message)) for each in caught] == [True] * warns


def test_noise_and_shots_of_a_device_are_named():
    def circuit(angles):
        qml.RY(angles[0], wires=0)
        return qml.probs()

    damping = qml.NoiseModel(
        {qml.noise.op_eq(qml.RY): qml.noise.partial_wires(qml.PhaseDamping, 0.1)}
    )
    exact = qml.device("default.mixed", wires=1)
    for node, named in (
        (qml.QNode(circuit, qml.add_noise(exact, damping)), "add_noise.* of its device"),
        (
            qml.QNode(circuit, qml.device("default.mixed", wires=1, readout_prob=0.2)),
            "readout_prob",
        ),
        (qml.set_shots(qml.QNode(circuit, exact), 100), "shots=100"),
    ):
        with pytest.warns(UserWarning, match=f"{named}.* is not used"):
            from_pennylane(node, (1,))
