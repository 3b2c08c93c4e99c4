"""`qpeft diagnose` from end to end: a run, and adapter folders."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import qpeft

QUESTIONS = ("random", "redundant", "gradients", "expressive", "moved", "rank")


@pytest.fixture
def diagnosed(answer):
    def call(*arguments):
        found = answer("diagnose", *arguments, "--samples", 20)
        return found, found["findings"]

    return call


def test_run_is_diagnosed_with_every_measurement(answer, diagnosed, base_folder, text, tmp_path):
    sizes = ("--hidden", "6,5", "--chunk-size", 32, "--steps", 4, "--batch-size", 2, "--seq-len", 32, "--lr", "0.01")
    answer("train", "--model", base_folder, "--data", text, "--out", tmp_path / "run", *sizes, "--eval-blocks", 4)
    found, by_key = diagnosed(tmp_path / "run")
    assert tuple(by_key) == QUESTIONS
    assert found["page"] == str(tmp_path / "run" / "diagnose.html")
    page = (tmp_path / "run" / "diagnose.html").read_text()
    assert all(finding["question"] in page for finding in found["findings"].values())
    assert "http" not in page
    assert set(by_key["random"]["measurements"]) == {"random angles", "start", "trained"}
    angles = by_key["redundant"]["measurements"]["angles"]
    n_qubits, n_layers = int(found["facts"]["Qubits"]), int(found["facts"]["Layers"])
    assert angles["n_angles"] == n_qubits * n_layers
    assert angles["rank"] == min(n_qubits * n_layers, 2**n_qubits - 1)
    assert 0 < by_key["moved"]["measurements"]["angles"]["mean"] < 1
    updates = by_key["rank"]["measurements"]["updates"]
    assert updates["n_used"] == 14
    assert updates["numerical_rank"] <= 8
    assert all(finding["sentences"] or finding["left_out"] for finding in found["findings"].values())


def test_adapter_folder_is_not_changed(diagnosed, adapter_folder, tmp_path):
    before = sorted(path.name for path in adapter_folder.iterdir())
    found, _ = diagnosed(adapter_folder)
    assert found["page"] is None
    assert sorted(path.name for path in adapter_folder.iterdir()) == before
    again, _ = diagnosed(adapter_folder, "--html", tmp_path / "page.html")
    assert again["findings"] == found["findings"], "equal seeds, equal measurements"
    assert (tmp_path / "page.html").is_file()


def test_quantum_peft_has_the_measurements_that_apply(diagnosed, base_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    config = qpeft.QuantumPeftConfig(r=2, n_layers=1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.requires_grad)
    model.save_pretrained(str(tmp_path / "adapter"))
    found, by_key = diagnosed(tmp_path / "adapter")
    assert by_key["random"]["left_out"]
    assert by_key["moved"]["measurements"]["angles"]["mean"] == pytest.approx(0.5, rel=1e-5)
    assert by_key["rank"]["measurements"]["updates"]["n_used"] == 14
    assert found["facts"]["Method"] == "quantum_peft"
