"""An ansatz as OpenQASM 3, read by two parsers; and as Python files, which are run."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import qasm3
from qiskit.quantum_info import Statevector

from qpeft.circuits import Ansatz
from qpeft.circuits.exports import to_python
from qpeft.circuits.gates import gate_probabilities, gate_state

NAMES = ("ry_ladder", "two_design", "square", "qaa", "rxyz")
every_ansatz = pytest.mark.parametrize("name", NAMES)


def random_angles(ansatz, scale=math.pi):
    return scale * (2 * torch.rand(ansatz.angle_shape, dtype=torch.float64) - 1)


def test_the_text_of_a_small_circuit():
    assert (
        Ansatz("ry_ladder", 2, 1).to_openqasm([[0.5, -1e-07]])
        == """\
OPENQASM 3.0;
include "stdgates.inc";
// ry_ladder, n_qubits=2, n_layers=1, angles in radians
// q[0] is the most significant bit of a basis index
qubit[2] q;
ry(0.5) q[0];
ry(-1e-07) q[1];
cx q[0], q[1];
"""
    )


@every_ansatz
@given(size=st.tuples(st.integers(1, 4), st.integers(1, 2)), scale=st.sampled_from([math.pi, 1e-3, 1e-12, 1e5]))
@settings(max_examples=6)
def test_what_qiskit_reads_is_the_circuit(name, size, scale):
    """Whatever the size of the angles: no digit is lost on the way through the text."""
    ansatz = Ansatz(name, *size)
    angles = random_angles(ansatz, scale)
    read = qasm3.loads(ansatz.to_openqasm(angles))
    found = Statevector(read.reverse_bits()).data
    np.testing.assert_allclose(found, gate_state(ansatz, angles).numpy(), atol=1e-9 if scale > 10 else 1e-12)


@every_ansatz
def test_free_angles_are_inputs_named_by_their_index(name):
    ansatz = Ansatz(name, 3, 2)
    angles = random_angles(ansatz)
    read = qasm3.loads(ansatz.to_openqasm())
    values = {f"theta_{'_'.join(map(str, slot))}": angles[slot].item() for slot in np.ndindex(ansatz.angle_shape)}
    assert {p.name for p in read.parameters} == set(values)
    found = Statevector(read.assign_parameters(values).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


# Python files

every_library = pytest.mark.parametrize("library", ["pennylane", "qiskit"])


def namespace_of(text):
    namespace = {"__name__": "circuit"}
    exec(compile(text, "circuit.py", "exec"), namespace)
    return namespace


@every_library
@every_ansatz
def test_a_python_file_gives_the_exact_probabilities(library, name):
    ansatz = Ansatz(name, 3, 2)
    angles = random_angles(ansatz)
    written = namespace_of(to_python(ansatz, library, angles))
    np.testing.assert_array_equal(written["ANGLES"], angles.numpy())
    found = written["probabilities"](written["ANGLES"])
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


@every_library
def test_a_python_file_with_free_angles_takes_them(library):
    ansatz = Ansatz("ry_ladder", 3, 2)
    written = namespace_of(to_python(ansatz, library))
    assert "ANGLES" not in written
    angles = random_angles(ansatz)
    found = written["probabilities"](angles.numpy())
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-12)


@pytest.mark.long
@every_library
def test_a_python_file_runs_without_qpeft(library, tmp_path):
    """As a program of its own it prints the probabilities."""
    ansatz = Ansatz("ry_ladder", 2, 2)
    angles = random_angles(ansatz)
    path = tmp_path / "circuit.py"
    path.write_text(to_python(ansatz, library, angles), encoding="utf-8")
    start = f"import sys, runpy; sys.modules['qpeft'] = None; runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    found = [float(word) for word in done.stdout.strip("[] \n").split()]
    np.testing.assert_allclose(found, gate_probabilities(ansatz, angles).numpy(), atol=1e-7)
