"""An ansatz of a user, of examples/own_ansatz.py too: contract, export, checkpoints."""

import copy
import re
import runpy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.circuits import (
    Ansatz,
    Gate,
    ansatz,
    exact_probabilities,
    register_ansatz,
)
from qpeft.errors import CheckpointError
from qpeft.testing import ansatz_contract


@pytest.fixture(autouse=True)
def _registered(example):
    example("own_ansatz")


def reference(angles):
    """PennyLane's, from its own gates."""
    qml, n = pytest.importorskip("pennylane"), angles.shape[-1]

    @qml.qnode(qml.device("default.qubit", wires=n), interface="torch")
    def run():
        for i, layer in enumerate(angles):
            for pair in {frozenset((wire, (wire + 1) % n)) for wire in range(n if n > 1 and i else 0)}:
                qml.CZ(list(pair))
            for turn, block in zip((qml.RX, qml.RY), layer, strict=True):
                for wire, angle in enumerate(block):
                    turn(angle, wire)
        return qml.probs(range(n))

    return run()


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
def test_contract(n_qubits, n_layers):
    ansatz = Ansatz("cz_ring", n_qubits, n_layers)
    ansatz_contract(lambda: ansatz, reference)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_example_trains_and_exports_an_adapter(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ansatz, "_families", {k: v for k, v in ansatz._families.items() if k != "cz_ring"})
    runpy.run_path(example("own_ansatz").__file__, run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.5
    assert '"ansatz": "cz_ring"' in (tmp_path / "cz-ring-exported/qpeft.json").read_text()


# -- adapters with an ansatz of a user


def _gates(pair):
    def layers(n_qubits, n_layers):
        for layer in range(n_layers):
            turns = [Gate("rx", (wire,), (layer, wire)) for wire in range(n_qubits)]
            yield turns + [Gate(pair, (wire, wire + 1)) for wire in range(n_qubits - 1)]

    return layers


def _register(layers, angle_shape=lambda n_qubits, n_layers: (n_layers, n_qubits)):
    ansatz._families.pop("mine", None)
    register_ansatz("mine", angle_shape, layers)


@pytest.fixture
def mine():
    _register(_gates("cx"))
    yield
    ansatz._families.pop("mine", None)


SIZES = {"features": 2, "chunk_size": 64, "n_layers": 2}


def adapted(base, **settings):
    given = {**SIZES, "ansatz": "mine", "r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(copy.deepcopy(base), qpeft.QPAConfig(**given))


def attached(base):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return qpeft.attach(get_peft_model(copy.deepcopy(base), lora), qpeft.QPAGeneratorConfig(ansatz="mine", **SIZES))


@pytest.mark.parametrize("make", [adapted, attached])
def test_checkpoint_of_a_changed_ansatz_is_refused(mine, example, make, llama, tmp_path):
    qpeft.save(make(llama), tmp_path / "adapter")
    qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    _register(example("own_ansatz").layers, example("own_ansatz").angle_shape)
    with pytest.raises(CheckpointError, match=r"expected \[1, 2, 2, \d\]; .*--ansatz FILE"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    angles = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3)
    _register(_gates("cx"))
    before = exact_probabilities(Ansatz("mine", 3, 2), angles)
    _register(_gates("cz"))  # other gates with angles of the same shape
    assert not torch.allclose(exact_probabilities(Ansatz("mine", 3, 2), angles), before)
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    ansatz._families.pop("mine")
    with pytest.raises(CheckpointError, match=r"unknown ansatz 'mine'.*import the module that registers it"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
