"""--parameters and --bytes of `plan` and `train`: the adapter that the evidence suggests."""

import json
import shlex
from dataclasses import asdict

import pytest

import qpeft
from qpeft.methods import suggest as suggest_module
from qpeft.methods.suggest import Design, Evidence
from qpeft_lab.training.run_folder import RunFolder


def use_only(monkeypatch, method, settings):
    """Evidence with one adapter."""
    setup = {"base": "b", "base_parameters": 10, "data": "d", "steps": 1, "seeds": 2}
    results = [{**setup, "trainable": 9, "loss": 3.5, "low": 3.4, "high": 3.6, "share": 0.5}]
    evidence = Evidence("s", "r", [Design("the best", method, settings, {"": 0.01, "b": 0.01}, results)])
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: evidence)


def test_plan_and_train_take_the_suggested_adapter(answer, base_folder, text, tmp_path):
    expected = qpeft.suggest(base_folder, parameters=40)
    found = answer("plan", "--model", base_folder, "--parameters", "40")
    shown = json.loads(json.dumps(asdict(expected)))
    assert {**found["suggestion"], "notes": []} == {**shown, "notes": []}  # there are notes on servers as well
    assert (found["trainable"], found["stored_bytes"]) == (expected.plan.trainable, expected.plan.stored_bytes)
    mixed = answer("plan", "--model", base_folder, "--parameters", "3000", "--mixed-batches")["suggestion"]
    assert mixed["label"] == qpeft.suggest(base_folder, parameters=3000, mixed_batches=True).label
    assert mixed["label"] != qpeft.suggest(base_folder, parameters=3000).label
    train = ("train", "--model", base_folder, "--data", text, "--method", "auto", "--parameters", "40")
    train += ("--steps", "2", "--seq-len", "16", "--batch-size", "2", "--out", tmp_path / "run")
    assert answer(*train)["trainable"] == expected.plan.trainable <= 40
    settings = RunFolder(tmp_path / "run").settings()
    assert (settings.method, settings.lr) == (expected.method, expected.learning_rate)
    assert answer(*train)["already_finished"]


def test_adapter_with_a_frame_file_is_trained_with_that_file(
    qpeft_cli, answer, base_folder, text, tmp_path, monkeypatch
):
    settings = {"frame": "gradient", "share": "type", "n_layers": 1, "frame_rank": 4, "r": 2}
    use_only(monkeypatch, "quantum_peft", settings | {"bits": 16, "lambda_bits": 16})
    plan = answer("plan", "--model", base_folder, "--bytes", "1000")
    assert plan["stored_bytes"] == 2 * plan["trainable"]
    train = ("train", "--model", base_folder, "--data", text, "--seq-len", "16", "--batch-size", "2")
    train += ("--method", "auto", "--bytes", "1000", "--steps", "2", "--out", tmp_path / "run")
    refused = qpeft_cli(*train)
    assert refused.exit_code == 2
    command = shlex.split(" ".join(refused.stderr.split()).partition("write one, qpeft ")[2].partition(", and add")[0])
    monkeypatch.chdir(tmp_path)
    answer(*command)
    found = answer(*train, "--frames", tmp_path / "frames.safetensors")
    assert plan["stored_bytes"] < found["stored_bytes"] < plan["stored_bytes"] + 200


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("quantum_peft", {"frame": "random", "freeze_angles": True, "r": 2, "modules_to_save": "@norms"}),
        ("uni_lora", {"r": 4, "theta_d_length": 64}),
        ("lora", {"r": 1, "target_modules": ["lm_head"]}),
        ("tiny_lora", {"r": 2, "u": 2, "save_projection": False}),
    ],
    ids=str,
)
def test_shown_options_are_those_of_the_suggested_adapter(
    qpeft_cli, answer, base_folder, monkeypatch, method, settings
):
    use_only(monkeypatch, method, settings)
    budget = ("plan", "--model", base_folder, "--parameters", "100000")
    suggested = answer(*budget)
    (line,) = [line for line in qpeft_cli(*budget).stdout.splitlines() if line.startswith("--method")]
    *words, option, rate = shlex.split(line)
    assert (option, rate) == ("--lr", "0.01")
    del suggested["suggestion"]
    assert answer("plan", "--model", base_folder, *words) == suggested
