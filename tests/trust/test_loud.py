"""Issue 67, section 1: rows E and H, and the list "Loud but wrong"."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from qpeft import methods
from qpeft.circuits import exact_probabilities, from_qiskit
from qpeft.errors import ConfigError
from qpeft_lab.data.sources import load_rows
from qpeft_lab.training.generate import Decoding, generate_texts

# -- E: transpiled circuits


@pytest.fixture
def routed():
    """A circuit on three qubits whose transpiled form swaps them, the angles, and the probabilities."""
    qiskit = pytest.importorskip("qiskit")
    from qiskit.circuit import ParameterVector
    from qiskit.quantum_info import Statevector

    angles = np.array([0.3, -0.8, 1.7])
    theta = ParameterVector("theta", 3)
    circuit = qiskit.QuantumCircuit(3)
    for wire in range(3):
        circuit.ry(theta[wire], wire)
    for pair in ((0, 2), (1, 0), (2, 1), (0, 2)):
        circuit.cx(*pair)
        circuit.ry(theta[pair[0]], pair[1])
    state = Statevector(circuit.assign_parameters({theta: angles}).reverse_bits())
    return circuit, torch.tensor(angles), torch.tensor(state.probabilities())


def transpiled(circuit, n_qubits, **options):
    from qiskit import transpile
    from qiskit.transpiler import CouplingMap

    line = CouplingMap.from_line(n_qubits)
    gates = ["rz", "sx", "x", "cx"]
    return transpile(circuit, coupling_map=line, basis_gates=gates, seed_transpiler=0, **options)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("layout", [None, [2, 0, 1]])
@pytest.mark.parametrize("measured", [False, True])
def test_transpiled_circuit_has_the_probabilities_of_the_circuit_before(
    routed, level, layout, measured
):
    circuit, angles, expected = routed
    if measured:
        circuit.measure_all()
    found = transpiled(circuit, 3, optimization_level=level, initial_layout=layout)
    ansatz = from_qiskit(found)
    torch.testing.assert_close(exact_probabilities(ansatz, angles).flatten(), expected)


def test_idle_qubits_of_the_device_are_left_out(routed):
    circuit, angles, expected = routed
    ansatz = from_qiskit(transpiled(circuit, 5, optimization_level=0, initial_layout=[1, 2, 3]))
    assert ansatz.n_qubits == 3
    torch.testing.assert_close(exact_probabilities(ansatz, angles).flatten(), expected)


def test_routing_over_other_qubits_of_the_device_is_refused(routed):
    found = transpiled(routed[0], 5, optimization_level=0, initial_layout=[0, 2, 4])
    with pytest.raises(ConfigError, match="also acts on qubits"):
        from_qiskit(found)


# -- texts


def test_text_on_a_terminal_of_another_encoding_is_escaped(monkeypatch):
    from qpeft.__main__ import main

    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(
        "qpeft_lab.cli.app.build", lambda: lambda **_: sys.stdout.write("a bird \u2665")
    )
    main()
    sys.stdout.flush()
    assert shown.getvalue().strip() == b"a bird \\u2665"


def test_whole_number_is_a_temperature():
    model = tiny_models.gpt2(vocab_size=300)
    tokenizer = tiny_models.byte_tokenizer()
    (text,) = generate_texts(model, tokenizer, ["a"], Decoding(max_new_tokens=2), temperature=2)
    assert isinstance(text, str)


@pytest.mark.parametrize("by_line", [False, True])
def test_byte_order_mark_is_no_part_of_a_text(tmp_path, by_line):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa bird\n")
    (row,) = load_rows(str(tmp_path / "a.txt"), "train", by_line=by_line)
    assert row == {"text": "a bird" if by_line else "a bird\n"}


def test_text_needs_no_cache(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr("datasets.load_dataset", fail)
    (tmp_path / "a.txt").write_text("a bird")
    assert load_rows(str(tmp_path / "a.txt"), "train") == [{"text": "a bird"}]


def test_example_of_a_method_imports_public_names_only():
    text = (Path(__file__).parents[2] / "examples" / "own_method.py").read_text()
    assert "qpeft.core" not in text
    assert "refuse_lora_options" in dir(methods)
