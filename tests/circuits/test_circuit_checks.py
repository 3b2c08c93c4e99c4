"""An ansatz of a user with invalid gates, angles or fast simulation is refused before it is used."""

import itertools

import pytest
import torch

from qpeft.backends.backend import ExactBackend
from qpeft.backends.jobs import Jobs
from qpeft.backends.run import CircuitRun
from qpeft.circuits import Ansatz, Gate, ansatz, exact_probabilities, gate_probabilities, register_ansatz, staged
from qpeft.circuits.exact import batch_probabilities, seconds_in_stages
from qpeft.errors import ConfigError
from qpeft.testing import ansatz_contract

N_QUBITS, N_LAYERS = 3, 1
TURNS = [Gate("ry", (wire,), (wire,)) for wire in range(N_QUBITS)]


def register(layers, shape=(N_QUBITS,), probabilities=None):
    ansatz._families.pop("mine", None)
    register_ansatz("mine", lambda n_qubits, n_layers: shape, lambda n_qubits, n_layers: layers, probabilities)
    return Ansatz("mine", N_QUBITS, N_LAYERS)


@pytest.fixture(autouse=True)
def _forget():
    yield
    ansatz._families.pop("mine", None)


RZZ = Gate("rzz", (0, 1), (0,))
BAD_GATES = {
    "two-wire gate": ([[*TURNS[1:], RZZ]], r"Gate\('rzz', \(0, 1\), \(0,\)\) is unknown; allowed are rx, ry, rz with"),
    "one-wire gate": ([[*TURNS, Gate("h", (0,))]], r"Gate\('h', \(0,\)\) is unknown; allowed are"),
    "swap": ([[*TURNS, Gate("swap", (0, 1))]], r"Gate\('swap', \(0, 1\)\) is unknown; .* cx, cz without"),
    "shared angle": ([[*TURNS, Gate("rx", (2,), (0,))]], r"uses the angle \[0\], as Gate\('ry', .*exactly one gate"),
    "unused angle": ([TURNS[:2]], r"no gate uses the angle \[2\] of angle_shape \(3,\)"),
    "wire": ([[*TURNS, Gate("cz", (2, 3))]], r"acts outside the circuit, whose wires are 0 to 2"),
    "negative wire": ([[*TURNS, Gate("cz", (0, -1))]], "acts outside the circuit"),
    "same wire": ([[*TURNS, Gate("cx", (1, 1))]], "needs two different wires"),
    "one wire of two": ([[*TURNS, Gate("cx", (1,))]], "needs two different wires"),
    "two wires of a rotation": ([[*TURNS[1:], Gate("rx", (0, 1), (0,))]], "needs one wire"),
    "wire without tuple": ([[*TURNS, Gate("cx", 0)]], "wires that are not a tuple of integers"),
    "slot outside": ([[*TURNS, Gate("rx", (0,), (3,))]], r"an angle that does not exist: angle_shape is \(3,\)"),
    "negative slot": ([[*TURNS[:2], Gate("rx", (0,), (-1,))]], "an angle that does not exist"),
    "slot of other axes": ([[*TURNS, Gate("rx", (0,), (0, 0))]], r"a tuple of integers, one for each axis of .*\(3,\)"),
    "slot without tuple": ([[*TURNS[:2], Gate("rx", (0,), 2)]], "a tuple of integers, one for each axis"),
    "rotation without angle": ([[*TURNS, Gate("rz", (0,))]], "needs an angle"),
    "cz with angle": ([[*TURNS[:2], Gate("cz", (0, 1), (2,))]], r"has an angle; allowed are .* cx, cz without"),
    "no layers": (TURNS, r"layers returned Gate\('ry', \(0,\), \(0,\)\) in place of a layer; .* as one list"),
    "no gate": ([[("ry", (0,), (0,))]], r"a layer contains \('ry', \(0,\), \(0,\)\); write Gate\(name, wires, slot\)"),
    "nothing": (None, r"layers\(3, 1\) raised TypeError: 'NoneType' object is not iterable"),
}
USES = {
    "exact": lambda mine: exact_probabilities(mine, torch.zeros(N_QUBITS)),
    "batch": lambda mine: batch_probabilities(mine, torch.zeros(2, N_QUBITS)),
    "gates": lambda mine: gate_probabilities(mine, torch.zeros(N_QUBITS)),
    "openqasm": lambda mine: mine.to_openqasm(),
    "drawing": lambda mine: mine.draw(),
    "depth": lambda mine: mine.depth,
    "plan": seconds_in_stages,
    "backend": lambda mine: CircuitRun(mine, Jobs(ExactBackend()))(torch.zeros(N_QUBITS)),
}


@pytest.mark.parametrize(("layers", "message"), BAD_GATES.values(), ids=BAD_GATES)
def test_invalid_gates_are_refused(layers, message):
    mine = register(layers)
    with pytest.raises(ConfigError, match=rf"^ansatz mine with 3 qubits and 1 layers: .*{message}"):
        exact_probabilities(mine, torch.zeros(N_QUBITS))
    with pytest.raises(AssertionError, match=message):
        ansatz_contract(lambda: mine, lambda angles: angles, lambda angles: angles)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_refuses_an_unknown_gate(use):
    use(register([TURNS]))
    with pytest.raises(ConfigError, match=r"'rzz'.* is unknown"):
        use(register([[*TURNS[1:], RZZ]]))


@pytest.mark.parametrize("library", ["pennylane", "qiskit"])
def test_every_export_refuses_an_unknown_gate(library):
    pytest.importorskip(library)
    mine = register([[*TURNS[1:], RZZ]])
    with pytest.raises(ConfigError, match=r"'rzz'.* is unknown"):
        mine.to_qiskit() if library == "qiskit" else mine.to_pennylane()(torch.zeros(N_QUBITS))


@pytest.mark.parametrize("shape", [3, [3], (), (3.0,), (-3,), None, ((3,),)])
def test_invalid_angle_shape_is_refused(shape):
    with pytest.raises(ConfigError, match=r"ansatz mine .*: angle_shape returned .*; return a tuple of integers"):
        _ = register([TURNS], shape).angle_shape


def test_exceptions_of_a_users_functions_name_the_ansatz():
    def broken(n_qubits, n_layers):
        raise KeyError("pairs")

    register_ansatz("mine", broken, broken)
    mine = Ansatz("mine", 3, 1)
    with pytest.raises(ConfigError, match=r"ansatz mine .*: angle_shape\(3, 1\) raised KeyError: 'pairs'"):
        exact_probabilities(mine, torch.zeros(3))
    ansatz._families.pop("mine")
    register_ansatz("mine", lambda n_qubits, n_layers: (3,), broken)
    with pytest.raises(ConfigError, match=r"layers\(3, 1\) raised KeyError: 'pairs'"):
        list(mine.gates())


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_refuses_gates_that_change(use):
    kinds = itertools.cycle(["rx", "ry"])
    register_ansatz(
        "mine",
        lambda n_qubits, n_layers: (n_qubits,),
        lambda n_qubits, n_layers: [[Gate(next(kinds), (wire,), (wire,)) for wire in range(n_qubits)]],
    )
    with pytest.raises(ConfigError, match="when it is called again"):
        use(Ansatz("mine", N_QUBITS, 1))


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit])
def test_users_function_that_ends_the_process_is_refused(raised):
    def ends(n_qubits, n_layers):
        raise raised

    register_ansatz("mine", lambda n_qubits, n_layers: (n_qubits,), ends)
    with pytest.raises(ConfigError, match=raised.__name__):
        exact_probabilities(Ansatz("mine", N_QUBITS, 1), torch.zeros(N_QUBITS))


def test_gates_of_each_size_are_checked_once(monkeypatch):
    seen = []
    check = ansatz.check_gates
    monkeypatch.setattr(ansatz, "check_gates", lambda *given: seen.append(given[1]) or check(*given))
    mine = register([TURNS])
    for _ in range(3):
        exact_probabilities(mine, torch.zeros(N_QUBITS))
        list(mine.gates())
        list(Ansatz("efficient_su2", 3, 1).gates())
    assert seen == [3]
    with pytest.raises(ConfigError, match="acts outside"):
        list(Ansatz("mine", 2, 1).gates())
    register([[*TURNS[1:], RZZ]])  # registered again under the same name
    with pytest.raises(ConfigError, match="is unknown"):
        list(mine.gates())


def test_simulation_in_stages_refuses_other_gates_on_two_wires():
    with pytest.raises(ConfigError, match=r"cannot simulate .*'swap'.* on two wires are cx, cz"):
        staged._permuted([Gate("swap", (0, 1))], 2)


FAST = {
    "shape": (lambda angles, n, layers: angles.new_zeros(16, 4), r"returned shape \(16, 4\), .* return shape \(8,\)"),
    "dtype": (
        lambda angles, n, layers: angles.new_ones(8).float() / 8,
        r"returned .*torch.float32, .* torch.float64, on cpu",
    ),
    "type": (lambda angles, n, layers: [1 / 8] * 8, "returned list; return a torch.Tensor"),
    "gradient": (
        lambda angles, n, layers: exact_probabilities(Ansatz("ry_ladder", 3, 1), angles[None].detach()),
        "returned a tensor without gradient, so the angles would not be trained",
    ),
}


@pytest.mark.parametrize(("fast", "message"), FAST.values(), ids=FAST)
def test_invalid_fast_simulation_is_refused(fast, message):
    mine = register([TURNS], probabilities=fast)
    angles = torch.zeros(N_QUBITS, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ConfigError, match=rf"^ansatz mine: the function `probabilities` {message}"):
        exact_probabilities(mine, angles)


def test_fast_simulation_needs_no_gradient_of_frozen_angles():
    mine = register([TURNS], probabilities=FAST["gradient"][0])
    angles = torch.zeros(N_QUBITS)
    assert exact_probabilities(mine, angles)[0] == 1
    with torch.no_grad():
        assert exact_probabilities(mine, angles.requires_grad_())[0] == 1


def test_fast_simulation_of_invalid_gates_is_refused():
    mine = register([[*TURNS[1:], RZZ]], probabilities=FAST["gradient"][0])
    for use in (seconds_in_stages, USES["exact"]):
        with pytest.raises(ConfigError, match=r"'rzz'.* is unknown"):
            use(mine)
