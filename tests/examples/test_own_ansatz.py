"""An ansatz of a user, of examples/own_ansatz.py too: contract, export, checkpoints."""

import copy
import re
import runpy

import pytest
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.circuits import Ansatz, ansatz
from qpeft.errors import CheckpointError
from qpeft.testing import ansatz_contract


@pytest.fixture(autouse=True)
def _registered(example):
    example("own_ansatz")


def reference(angles):
    """PennyLane's, from its own gates."""
    qml = pytest.importorskip("pennylane")
    n = angles.shape[-1]

    @qml.qnode(qml.device("default.qubit", wires=n), interface="torch")
    def run():
        for i, layer in enumerate(angles):
            for pair in {
                frozenset((wire, (wire + 1) % n)) for wire in range(n if n > 1 and i else 0)
            }:
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
    monkeypatch.setattr(
        ansatz, "_families", {k: v for k, v in ansatz._families.items() if k != "cz_ring"}
    )
    runpy.run_path(example("own_ansatz").__file__, run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]

    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.5
    assert '"ansatz": "cz_ring"' in (tmp_path / "cz-ring-exported/qpeft.json").read_text()


SIZES = {"ansatz": "cz_ring", "features": 2, "chunk_size": 64, "n_layers": 2}
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("is_attached", [False, True])
def test_checkpoint_of_a_changed_ansatz_is_refused(is_attached, llama, tmp_path, monkeypatch):
    config = LoraConfig(**LORA) if is_attached else qpeft.QPAConfig(**SIZES, **LORA)
    model = get_peft_model(copy.deepcopy(llama), config)
    qpeft.save(
        qpeft.attach(model, qpeft.QPAGeneratorConfig(**SIZES)) if is_attached else model, tmp_path
    )
    qpeft.load(copy.deepcopy(llama), tmp_path)
    own = ansatz._families["cz_ring"]

    def with_cx(n_qubits, n_layers):
        shape, layers = own(n_qubits, n_layers)
        return shape, [
            [gate._replace(name="cx" if gate.name == "cz" else gate.name) for gate in one]
            for one in layers
        ]

    def with_more_angles(n_qubits, n_layers):
        return own(n_qubits, n_layers + 1)

    for family, message in (
        (with_cx, "other initial values or settings"),
        (with_more_angles, r"expected \[1, 3, 2, \d\]; .*--ansatz FILE"),
    ):
        monkeypatch.setitem(ansatz._families, "cz_ring", family)
        with pytest.raises(CheckpointError, match=message):
            qpeft.load(copy.deepcopy(llama), tmp_path)
    monkeypatch.delitem(ansatz._families, "cz_ring")

    with pytest.raises(
        CheckpointError, match=r"unknown ansatz 'cz_ring'.*import the module that registers it"
    ):
        qpeft.load(copy.deepcopy(llama), tmp_path)
