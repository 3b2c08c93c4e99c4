"""States at given and random angles, and the names of the package."""

import math
import subprocess
import sys

import pennylane as qml
import pytest
import torch
from scipy import stats

from qpeft import diagnostics
from qpeft.circuits import Ansatz, probabilities
from qpeft.circuits.gates import gate_state
from qpeft.diagnostics import circuit_states, random_probabilities, random_states
from qpeft.diagnostics.states import field_of, random_angles
from qpeft.errors import ConfigError


@pytest.mark.parametrize("name", ["ry_ladder", "two_design", "efficient_su2", "qaa"])
@pytest.mark.parametrize("n_qubits", [1, 2, 5])
def test_states_equal_the_gate_simulation(name, n_qubits):
    ansatz = Ansatz(name, n_qubits, 3)
    angles = random_angles(ansatz, 4, seed=1)
    expected = torch.stack([gate_state(ansatz, each) for each in angles])
    torch.testing.assert_close(circuit_states(ansatz, angles), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(random_states(ansatz, 4, seed=1), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(random_probabilities(ansatz, 4, seed=1), expected.abs().square(), rtol=0, atol=1e-13)


def test_two_design_equals_the_first_column_of_pennylane():
    ansatz = Ansatz("two_design", 3, 2)
    angles = random_angles(ansatz, 1, seed=2)
    first, rest = angles[0, :3].numpy(), angles[0, 3:].view(2, 2, 2).numpy()
    matrix = qml.matrix(qml.SimplifiedTwoDesign(first, rest, wires=range(3)))
    torch.testing.assert_close(circuit_states(ansatz, angles)[0], torch.from_numpy(matrix[:, 0].real.copy()))


def test_random_probabilities_equal_those_of_qpa():
    ansatz = Ansatz("ry_ladder", 4, 8)
    expected = [probabilities(each) for each in random_angles(ansatz, 3, seed=0)]
    torch.testing.assert_close(random_probabilities(ansatz, 3), torch.stack(expected), rtol=0, atol=1e-14)


def test_states_are_complex_where_a_gate_is():
    fields = {name: field_of(Ansatz(name, 3, 1)) for name in ("ry_ladder", "two_design", "efficient_su2", "qaa")}
    assert fields == {"ry_ladder": "real", "two_design": "real", "efficient_su2": "complex", "qaa": "real"}
    assert random_states(Ansatz("efficient_su2", 3, 1), 2).is_complex()


def test_random_angles_are_uniform():
    angles = random_angles(Ansatz("ry_ladder", 6, 8), 100, seed=3)
    assert angles.shape == (100, 8, 6)
    assert stats.kstest(angles.flatten().numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(), (8, 4), (2, 4, 8), (0,)])
def test_wrong_shape_is_refused(shape):
    with pytest.raises(ConfigError, match=r"angles must have shape \(samples, 8, 4\), got "):
        circuit_states(Ansatz("ry_ladder", 4, 8), torch.zeros(shape))


def test_package_is_lazy_and_has_all_its_names():
    code = "import sys, qpeft; assert 'torch' not in sys.modules; print(qpeft.diagnostics.porter_thomas.__name__)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "porter_thomas"
    for name in diagnostics.__all__:
        assert getattr(diagnostics, name) is not None
