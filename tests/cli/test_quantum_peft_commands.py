"""Quantum-PEFT on the command line, and options that several methods share."""

import json

import pytest

from qpeft.cli.method import method_settings
from qpeft.training.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out:UserWarning", "ignore:angles can hardly move:UserWarning"
)


@pytest.mark.long
def test_train_export_evaluate_and_generate(qpeft_cli, base_folder, tmp_path):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("The king went into the wood, and the golden bird sang. " * 40)

    def answer(*arguments):
        result = qpeft_cli(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    method = ("--method", "quantum_peft", "--r", 3, "--n-layers", 1, "--frame", "gradient", "--share", "type")
    planned = answer("plan", "--model", base_folder, *method)
    paths = ("--model", base_folder, "--data", text, "--out", run)
    trained = answer("train", *paths, *method, "--steps", 6, "--batch-size", 4, "--lr", "5e-2")
    assert (trained["trainable"], trained["deployed"]) == (planned["trainable"], planned["deployed"])
    assert trained["after"]["loss"] < trained["before"]["loss"]
    exported = answer("export", run, "--out", tmp_path / "out")
    assert exported["max_logit_difference"] <= 1e-6
    scores = answer("evaluate", "--adapter", run, "--data", text)
    assert scores["adapted"]["loss"] < scores["base"]["loss"]
    assert answer("evaluate", "--adapter", tmp_path / "out", "--data", text)["adapted"] == pytest.approx(
        scores["adapted"], rel=1e-6
    )
    assert answer("generate", "--adapter", run, "--prompt", "The king", "--max-new-tokens", 3)["n_new_tokens"] <= 3


def test_shared_option_is_passed_to_the_chosen_method(qpeft_cli, base_folder):
    def planned(*options):
        arguments = ("--model", base_folder, "--method", "quantum_peft", "--r", 3, *options)
        return json.loads(qpeft_cli("plan", *arguments, "--json").stdout)["trainable"]

    assert planned("--n-layers", 1) < planned() == planned("--n-layers", 2) < planned("--n-layers", 3)


def test_preset_sets_the_options_of_its_method():
    run = TrainSettings(model="m", data="d", out="o", method="quantum_peft")
    taylor = method_settings(run, "paper_taylor", {}, {"taylor_order": 12})
    assert taylor["lie_map"] == "taylor"
    assert taylor["taylor_order"] == 12
    pauli = method_settings(run, "paper_pauli", {"r": 2}, {})
    assert (pauli["r"], pauli["n_layers"], pauli["columns"], pauli["construction"]) == (2, 1, "first", "qsd_full")


def test_help_explains_a_shared_option_for_each_method(qpeft_cli):
    text = " ".join(qpeft_cli("train", "--help", env={"COLUMNS": "80"}).stdout.replace("│", " ").split())
    assert "--n-layers N QPA: Circuit layers L;" in text
    assert "Default: 8. " in text
    assert "Quantum-PEFT: Circuit layers L; family pauli. Default: 2." in text
    assert text.count("--n-layers") == text.count("--angle-scale") == 1
