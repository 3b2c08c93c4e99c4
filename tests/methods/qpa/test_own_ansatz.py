"""QPA with an ansatz of a user: its checkpoints and its gradients on every backend."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.backends import ExactBackend
from qpeft.circuits import Ansatz, Gate, ansatz, exact_probabilities, register_ansatz
from qpeft.errors import CheckpointError

SIZES = {"features": 2, "chunk_size": 64, "n_layers": 2}


def _gates(pair):
    def layers(n_qubits, n_layers):
        for layer in range(n_layers):
            turns = [Gate("rx", (wire,), (layer, wire)) for wire in range(n_qubits)]
            yield turns + [Gate(pair, (wire, wire + 1)) for wire in range(n_qubits - 1)]

    return layers


def _two_blocks(n_qubits, n_layers):
    for layer in range(n_layers):
        yield [Gate(name, (w,), (layer, i, w)) for i, name in enumerate(("ry", "rx")) for w in range(n_qubits)]


def _register(layers, angle_shape=lambda n_qubits, n_layers: (n_layers, n_qubits)):
    ansatz._families.pop("mine", None)
    register_ansatz("mine", angle_shape, layers)


@pytest.fixture(autouse=True)
def _mine():
    _register(_gates("cx"))
    yield
    ansatz._families.pop("mine", None)


def adapted(base, **settings):
    given = {**SIZES, "ansatz": "mine", "r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(copy.deepcopy(base), qpeft.QPAConfig(**given))


def attached(base):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return qpeft.attach(get_peft_model(copy.deepcopy(base), lora), qpeft.QPAGeneratorConfig(ansatz="mine", **SIZES))


@pytest.mark.parametrize("make", [adapted, attached])
def test_checkpoint_of_a_changed_ansatz_is_refused(make, llama, tmp_path):
    qpeft.save(make(llama), tmp_path / "adapter")
    qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    _register(_two_blocks, lambda n_qubits, n_layers: (n_layers, 2, n_qubits))
    with pytest.raises(CheckpointError, match=r"expected \[1, 2, 2, \d\]; .*--ansatz FILE"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    _register(_gates("cz"))  # other gates with angles of the same shape
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")
    ansatz._families.pop("mine")
    with pytest.raises(CheckpointError, match=r"unknown ansatz 'mine'.*import the module that registers it"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "adapter")


def test_ansatz_that_is_registered_again_is_simulated_anew():
    angles = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3)
    before = exact_probabilities(Ansatz("mine", 3, 2), angles)
    _register(_gates("cz"))
    assert not torch.allclose(exact_probabilities(Ansatz("mine", 3, 2), angles), before)


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["mine", "efficient_su2"])
@pytest.mark.parametrize(
    ("backend", "rule"),
    [
        (ExactBackend(), "adjoint"),
        ("pennylane:default.qubit", "adjoint"),
        ("pennylane:lightning.qubit", "parameter-shift"),
    ],
)
def test_gradients_of_every_backend_are_equal(llama, ids, name, backend, rule):
    pytest.importorskip("pennylane")
    model = adapted(llama, ansatz=name)
    expected = gradients(model, ids)
    assert qpeft.set_backend(model, backend).gradient == rule
    for found, exact in zip(gradients(model, ids), expected, strict=True):
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-5)
    assert max(each.abs().max() for each in expected) > 1e-3
