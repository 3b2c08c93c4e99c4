"""The circuits that a verdict takes: names, files with circuits of three tools, and refusals."""

import pytest
import torch

from qpeft.circuits import Ansatz, exact_probabilities, to_openqasm
from qpeft.errors import ConfigError, InputError
from qpeft.user_code import execute
from qpeft_lab.user_files import named_ansatz
from qpeft_lab.verdict.circuit import _kept, circuit_of, idle_angles
from qpeft_lab.verdict.protocol import study_of

QNODE = """
import pennylane as qml

@qml.qnode(qml.device("default.qubit", wires=3))
def circuit(angles):
    for wire in range(3):
        qml.RY(angles[0, wire], wires=wire)
    qml.CNOT([0, 1])
    qml.CNOT([1, 2])
    for wire in range(3):
        qml.RX(2 * angles[1, wire], wires=wire)
    return qml.probs()

def empty(angles):
    qml.CNOT([0, 1])

number = 3
"""
QASM = 'OPENQASM 3.0; include "stdgates.inc"; input float a; qubit[2] q; rx(a) q[0];'


@pytest.fixture
def file(tmp_path):
    (path := tmp_path / "mine.py").write_text(QNODE, encoding="utf-8")
    return path


def test_qnode_becomes_a_file_that_every_process_can_run(file, tmp_path):
    pytest.importorskip("pennylane")
    chosen = circuit_of(f"{file}:circuit", (2, 3), tmp_path / "out")
    assert chosen.label == "circuit"
    assert chosen.fixed.n_qubits == 3

    execute(chosen.ansatz, "ansatz")
    angles = torch.rand(2, 3, dtype=torch.float64)
    own = exact_probabilities(Ansatz(chosen.ansatz.rpartition(":")[2], 3, 1), angles)
    reference = execute(f"{file}:circuit", "circuit").circuit(angles)

    assert torch.allclose(own, reference, atol=1e-12)


def test_two_studies_of_a_circuit_in_one_process(tmp_path):
    ansatz = Ansatz("ry_ladder", 3, 2)
    for name in ("first", "second"):
        chosen = _kept(ansatz, "ladder", tmp_path / name)
        assert named_ansatz(chosen.ansatz) == chosen.ansatz.rpartition(":")[2]

    file = tmp_path / "first" / "own_circuit.py"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is another circuit than ladder"):
        _kept(ansatz, "ladder", tmp_path / "first")


def test_angles_without_an_effect_are_counted_or_refused(tmp_path):
    """RZ gates behind the last mixing gate change phases alone."""
    pytest.importorskip("qiskit")
    head = 'OPENQASM 3.0; include "stdgates.inc"; input float a; input float b; qubit[2] q; '
    phases = "rz(a) q[0]; cx q[0], q[1]; rz(b) q[1];"
    (path := tmp_path / "own.qasm").write_text(f"{head}h q[0]; {phases}", encoding="utf-8")
    with pytest.raises(ConfigError, match="no angle of the circuit own changes its probabilities"):
        circuit_of(str(path), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    path.write_text(f"{head}h q[0]; {phases} h q[0]; h q[1];", encoding="utf-8")
    assert idle_angles(circuit_of(str(path), None, tmp_path / "both").fixed) == 0
    path.write_text(f"{head}h q[0]; rz(a) q[0]; h q[0]; rz(b) q[1];", encoding="utf-8")
    assert idle_angles(circuit_of(str(path), None, tmp_path / "one").fixed) == 1


def test_openqasm_and_names(tmp_path):
    pytest.importorskip("qiskit")
    ansatz = Ansatz("ry_ladder", 3, 2)
    (path := tmp_path / "ladder.qasm").write_text(to_openqasm(ansatz), encoding="utf-8")

    assert circuit_of(str(path), None, tmp_path / "out").fixed.n_angles == ansatz.n_angles

    bell = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; h q[0]; cx q[0], q[1];'
    path.write_text(bell, encoding="utf-8")
    with pytest.raises(ConfigError, match="ladder has no parameters"):
        circuit_of(str(path), None, tmp_path / "out")
    assert circuit_of("two_design", None, tmp_path / "out") == ("two_design", "two_design", None)


@pytest.mark.parametrize("n_qubits", [2, 3, 4, 7])
def test_circuit_of_one_size_has_its_number_of_qubits_in_qpa(n_qubits, tmp_path, file):
    pytest.importorskip("pennylane")
    from qpeft.methods.qpa.settings import QPAGeneratorConfig

    chosen = _kept(Ansatz("ry_ladder", n_qubits, 2), "ladder", tmp_path)
    study = study_of(chosen, "qpa", None, 40_960, {}, [0])
    settings = next(m["settings"] for m in study["methods"] if m["key"] == "circuit")
    execute(chosen.ansatz, "ansatz")
    fields = {"ansatz": chosen.ansatz.rpartition(":")[2], "n_layers": 1}
    fields |= {name: settings[name] for name in ("features", "chunk_size")}
    counted = QPAGeneratorConfig(**fields).count(40_960)

    assert counted.n_qubits == n_qubits
    assert counted.total <= 40_960 / 2 + 2 * n_qubits


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("ladder", None, "there is no circuit 'ladder'. Give ry_ladder"),
        ("no.qasm", None, "there is no file no.qasm"),
        ("{file}:circuit", None, "give their shape, such as --shape 2,4"),
        ("{file}:other", None, "neither has nor registers 'other'; it has circuit, empty"),
        ("{file}:number", None, "is a int; give a QNode"),
        ("{file}:empty", (1,), "has no parameters"),
        ("ry_ladder", (2, 3), "--shape is for a QNode"),
        ("{folder}/one.qasm", (1,), "--shape is for a QNode"),
        ("{folder}/utf16.qasm", None, "cannot be read as a text in UTF-8"),
        ("{file}:circuit", (2, 3), "own_circuit.py is another circuit than circuit"),
    ],
)
def test_refusals(name, shape, message, file, tmp_path):
    pytest.importorskip("pennylane")
    for encoding, own in (("utf-8", "one"), ("utf-16", "utf16")):
        (tmp_path / f"{own}.qasm").write_text(QASM, encoding=encoding)
    (out := tmp_path / "out").mkdir()
    (out / "own_circuit.py").write_text("mine")

    with pytest.raises(InputError, match=message):
        circuit_of(name.format(file=file, folder=tmp_path), shape, out)
    assert (out / "own_circuit.py").read_text() == "mine"


def test_quantum_peft_has_its_own_circuit_alone(tmp_path):
    circuit = circuit_of("ry_ladder", None, tmp_path)
    with pytest.raises(ConfigError, match="has the circuit two_design"):
        study_of(circuit, "quantum_peft", None, 0, {}, [0])

    two_design = circuit_of("two_design", None, tmp_path)
    methods = study_of(two_design, "quantum_peft", None, 0, {}, [0], angle_scale=9.0)["methods"]
    assert [m["key"] for m in methods if m.get("settings", {}).get("angle_scale") == 9.0] == [
        "circuit",
        "frozen",
        "signs",
    ]
    assert {m["key"] for m in methods} >= {"none", "lora_r8", "lora", "lora_sb", "uni_lora"}
