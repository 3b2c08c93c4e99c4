"""`qpeft circuits draw, count, export`, for an ansatz and for the circuit of an adapter; `qpeft diagnose`."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from qiskit import qasm3
from qiskit.quantum_info import Statevector
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.circuits import Ansatz, probabilities, to_openqasm

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "task_type": "CAUSAL_LM"}
GENERATOR = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 2, "seed": 3}


@pytest.fixture
def circuits(answer):
    return lambda *arguments: answer("circuits", *arguments)


@pytest.fixture
def make_adapter(base_folder, tmp_path):
    """The folder of an untrained adapter, with a generator attached to it or not."""

    def make(config, generator=None):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), config)
        if generator is not None:
            qpeft.attach(model, generator)
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        qpeft.save(model, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def live_angles(adapter_folder, base_folder):
    """The angles (L, N) of the adapter in a model."""
    from qpeft.methods.qpa.generator import CircuitFeature

    model = qpeft.load(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), adapter_folder)
    (feature,) = [module for module in model.modules() if isinstance(module, CircuitFeature)]
    return feature.angles()[0].detach().double()


def test_ansatz_is_drawn(circuits):
    found = circuits("draw", "--ansatz", "two_design", "--n-qubits", 3, "--n-layers", 2)
    assert found["drawing"] == Ansatz("two_design", 3, 2).draw()
    assert (found["ansatz"], found["n_qubits"], found["n_layers"], found["angles"]) == ("two_design", 3, 2, None)


def test_draw_lists_the_trained_angles_of_an_adapter(qpeft_cli, circuits, adapter_folder, live_angles):
    np.testing.assert_array_equal(circuits("draw", "--adapter", adapter_folder)["angles"], live_angles.numpy())
    shown = qpeft_cli("circuits", "draw", "--adapter", adapter_folder).stdout
    rows = [line.split() for line in shown.splitlines()[-len(live_angles) :]]
    np.testing.assert_allclose(np.array(rows, dtype=float), live_angles.numpy(), atol=5e-5)


def test_frozen_and_attached_circuits_have_their_initial_angles(circuits, make_adapter):
    """Untrained, so both have the angles that seed 3 draws; of several circuits the first is drawn."""
    frozen = make_adapter(qpeft.QPAConfig(feature_source="qnn_frozen", **LORA, **GENERATOR))
    attached = make_adapter(LoraConfig(**LORA), qpeft.QPAGeneratorConfig(**GENERATOR))
    first, second = (np.array(circuits("draw", "--adapter", folder)["angles"]) for folder in (frozen, attached))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first).max() <= np.pi
    several = make_adapter(qpeft.QPAConfig(**LORA, **{**GENERATOR, "hidden": ()}, features=4, n_generators=3))
    assert np.ndim(circuits("draw", "--adapter", several)["angles"]) == 2


def test_adapters_without_a_circuit_of_qpa_are_refused(qpeft_cli, make_adapter):
    without = qpeft.QPAConfig(feature_source="none", **LORA, **GENERATOR)
    for config in (without, qpeft.QuantumPeftConfig(**LORA), LoraConfig(**LORA)):
        assert qpeft_cli("circuits", "draw", "--adapter", make_adapter(config)).exit_code == 2


def test_counts_of_the_default_circuit(circuits):
    """QPA's default circuit: 8 layers of 7 rotations and 6 CNOTs."""
    found = circuits("count")
    assert (found["ansatz"], found["n_qubits"], found["n_layers"], found["n_angles"]) == ("ry_ladder", 7, 8, 56)
    assert found["gates"] == {"ry": 56, "cx": 48}
    assert (found["two_qubit_gates"], found["depth"]) == (48, 28)


def test_export_has_the_probabilities_of_the_adapter_or_free_angles(qpeft_cli, adapter_folder, live_angles, tmp_path):
    text = qpeft_cli("circuits", "export", "--adapter", adapter_folder).stdout
    found = Statevector(qasm3.loads(text).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, probabilities(live_angles).numpy(), atol=1e-12)
    expected, out = to_openqasm(Ansatz("ry_ladder", 2, 1)), tmp_path / "new" / "circuit.qasm"
    free = ("circuits", "export", "--n-qubits", 2, "--n-layers", 1)
    assert qpeft_cli(*free).stdout == expected
    assert qpeft_cli(*free, "--out", out).exit_code == 0
    assert out.read_text(encoding="utf-8") == expected
    target, link = tmp_path / "elsewhere", tmp_path / "link"
    link.symlink_to(target)
    for before in (None, "of before"):  # written through a link, with the permissions of its target
        if before is not None:
            target.write_text(before)
            target.chmod(0o600)
        assert qpeft_cli(*free, "--out", link).exit_code == 0
        assert (link.is_symlink(), target.read_text(encoding="utf-8")) == (True, expected)
    assert target.stat().st_mode & 0o777 == 0o600


# diagnose

QUESTIONS = ("random", "redundant", "gradients", "expressive", "moved", "rank")


def test_run_is_diagnosed_with_every_measurement(answer, base_folder, text, tmp_path):
    sizes = ("--hidden", "6,5", "--chunk-size", 32, "--steps", 4, "--batch-size", 2, "--seq-len", 32, "--lr", "0.01")
    answer("train", "--model", base_folder, "--data", text, "--out", tmp_path / "run", *sizes, "--eval-blocks", 4)
    found = answer("diagnose", tmp_path / "run", "--samples", 20)
    by_key = found["findings"]
    assert tuple(by_key) == QUESTIONS
    assert found["page"] == str(tmp_path / "run" / "diagnose.html")
    page = (tmp_path / "run" / "diagnose.html").read_text()
    assert all(finding["question"] in page for finding in by_key.values())
    assert "http" not in page
    assert set(by_key["random"]["measurements"]) == {"random angles", "start", "trained"}
    angles = by_key["redundant"]["measurements"]["angles"]
    n_qubits, n_layers = int(found["facts"]["Qubits"]), int(found["facts"]["Layers"])
    assert angles["angles"] == n_qubits * n_layers
    assert angles["independent"] == min(n_qubits * n_layers, 2**n_qubits - 1)
    assert 0 < by_key["moved"]["measurements"]["angles"]["mean"] < 1
    updates = by_key["rank"]["measurements"]["updates"]
    assert updates["matrices"] == 14
    assert updates["numerical_rank"] <= 8
    assert all(finding["sentences"] or finding["left_out"] for finding in by_key.values())


def test_adapter_folder_is_not_changed(answer, adapter_folder, tmp_path):
    before = sorted(path.name for path in adapter_folder.iterdir())
    found = answer("diagnose", adapter_folder, "--samples", 20)
    assert found["page"] is None
    assert sorted(path.name for path in adapter_folder.iterdir()) == before
    again = answer("diagnose", adapter_folder, "--samples", 20, "--html", tmp_path / "page.html")
    assert again["findings"] == found["findings"], "equal seeds, equal measurements"
    assert (tmp_path / "page.html").is_file()
