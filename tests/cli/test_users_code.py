"""Code of a user that ends the process, or whose gates change, is an error with an exit code of its own."""

import pytest

ANSATZ = """
import random, sys
from qpeft.circuits import Gate, register_ansatz
calls = []

def angle_shape(n_qubits, n_layers):
    {in_shape}
    return (n_layers, n_qubits)

def layers(n_qubits, n_layers):
    calls.append(1)
    {in_layers}
    for layer in range(n_layers):
        yield [Gate({gate}, (wire,), (layer, wire)) for wire in range(n_qubits)]

def probabilities(angles, n_qubits, n_layers):
    sys.exit(0)

register_ansatz({name!r}, angle_shape, layers{fast})
"""


@pytest.fixture
def train(qpeft_cli, base_folder, tmp_path):
    (tmp_path / "text.txt").write_text("The king went into the wood. " * 40)

    def call(*options, command="train"):
        data = ("--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--steps", 1, "--seq-len", 32)
        shown = qpeft_cli(command, "--model", base_folder, "--r", 2, *(data if command == "train" else ()), *options)
        assert not (tmp_path / "run" / "result.json").exists()
        return shown.exit_code, " ".join(shown.stderr.split())

    return call


@pytest.fixture
def ansatz(tmp_path):
    name = f"of_{tmp_path.name}"

    def write(in_shape="pass", in_layers="pass", gate="'ry'", fast=""):
        code = ANSATZ.format(in_shape=in_shape, in_layers=in_layers, gate=gate, name=name, fast=fast)
        (tmp_path / f"{name}.py").write_text(code)
        return f"{tmp_path / name}.py:{name}"

    return write


@pytest.mark.parametrize("option", ["--ansatz", "--method", "--backend"])
@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "raise SystemExit", "class Own(BaseException): pass\nraise Own"]
)
def test_file_that_ends_the_process_is_refused(train, tmp_path, option, code):
    (tmp_path / "own.py").write_text(code)
    exit_code, shown = train(option, f"{tmp_path}/own.py:NAME")
    assert exit_code == 2
    assert "own.py:NAME" in shown.replace(" ", "")


def test_function_of_a_backend_that_ends_the_process_is_refused(train, tmp_path):
    (tmp_path / "own.py").write_text("import sys\ndef device(n_qubits):\n    sys.exit(0)\n")
    assert train("--backend", f"{tmp_path}/own.py:device")[0] == 2


@pytest.mark.parametrize("place", ["in_shape", "in_layers"])
@pytest.mark.parametrize("command", ["train", "plan"])
def test_function_of_an_ansatz_that_ends_the_process_is_refused(train, ansatz, place, command):
    exit_code, shown = train("--ansatz", ansatz(**{place: "sys.exit(0)"}), command=command)
    assert exit_code == 2
    assert "sys.exit" in shown


def test_exit_during_training_is_a_failure(train, ansatz):
    exit_code, shown = train("--ansatz", ansatz(fast=", probabilities"))
    assert exit_code == 1
    assert "sys.exit(0)" in shown


@pytest.mark.parametrize(
    "changing",
    [
        {"gate": "random.choice(('rx', 'ry'))"},
        {"gate": "('rx', 'ry')[len(calls) % 2]"},
        {"in_shape": "n_layers += len(calls) > 1", "in_layers": "n_layers += len(calls) > 1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_ansatz_whose_gates_change_is_refused_before_training(train, ansatz, changing, command):
    exit_code, shown = train("--ansatz", ansatz(**changing), command=command)
    assert exit_code == 2
    assert "when it is called again" in shown
