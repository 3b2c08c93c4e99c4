"""Every command takes a user's method, examples/own_method.py, as FILE.py:NAME."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = str(Path(__file__).resolve().parents[2] / "examples/own_method.py") + ":METHOD"


@pytest.fixture(scope="module")
def trained(qpeft_cli, base_folder, tmp_path_factory):
    """A run folder, and the text it was trained on."""
    folder = tmp_path_factory.mktemp("own")
    text = folder / "text.txt"
    text.write_text("The king went into the wood, and the golden bird sang. " * 40)
    options = ("--method", FILE, "--r", 2, "--set", "n_bases=4", "--steps", 3, "--seq-len", 32)
    shown = qpeft_cli("train", "--model", base_folder, "--data", text, "--out", folder / "run", *options)
    assert shown.exit_code == 0, shown.output
    return folder / "run", text


def answer(shown):
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def test_commands_load_a_method_from_its_file(qpeft_cli, base_folder, trained, tmp_path):
    run, text = trained
    plan = answer(qpeft_cli("plan", "--model", base_folder, "--method", FILE, "--r", 2, "--set", "n_bases=4", "--json"))
    result = json.loads((run / "result.json").read_text())
    assert (result["method"], result["trainable"], result["deployed"]) == ("nola", plan["trainable"], plan["deployed"])
    scored = answer(qpeft_cli("evaluate", "--adapter", run, "--data", text, "--method", FILE, "--json"))
    assert scored["adapted"]["loss"] != scored["base"]["loss"]
    written = answer(qpeft_cli("generate", "--adapter", run, "--prompt", "The", "--method", FILE, "--json"))
    assert written["n_new_tokens"] > 0
    exported = answer(qpeft_cli("export", run, "--out", tmp_path / "stock", "--method", FILE, "--json"))
    assert exported["max_logit_difference"] <= 1e-6
    ranks = answer(qpeft_cli("diagnose", run, "--method", FILE, "--json"))
    assert "rank" in json.dumps(ranks)


def test_compare_loads_a_method_from_its_file(qpeft_cli, base_folder, trained, tmp_path):
    study = {
        "name": "own",
        "title": "NOLA",
        "question": "Is it LoRA?",
        "methods": [
            {"key": "lora", "method": "lora", "settings": {"r": 1}},
            {"key": "nola", "method": FILE, "settings": {"r": 2, "n_bases": 4}},
        ],
        "training": {"steps": 2, "batch_size": 2, "seq_len": 32, "eval_blocks": 4},
        "tuning": {"grid": [1.0]},
        "seeds": [0],
        "test_blocks": 4,
        "capacity": False,
        "costs": False,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(study))
    options = ("--base", base_folder, "--data", trained[1], "--out", tmp_path / "out", "--json")
    found = answer(qpeft_cli("compare", "run", tmp_path / "own.yaml", *options))
    assert found["n_done"] == 2
    assert {"figures", "cost", "metric", "settings"} <= found["methods"][0].keys()


def test_adapter_of_an_unknown_method_names_the_option(trained, base_folder):
    """In a process of its own, that has not imported the file."""
    command = [sys.executable, "-m", "qpeft", "generate", "--adapter", str(trained[0]), "--prompt", "The"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"add --method {FILE}" in " ".join(refused.stderr.split())
    assert subprocess.run([*command, "--method", FILE], capture_output=True).returncode == 0


def test_finished_run_of_a_changed_file_is_refused(qpeft_cli, base_folder, tmp_path, monkeypatch):
    file, text = tmp_path / "changing.py", tmp_path / "text.txt"
    file.write_text(Path(FILE.rpartition(":")[0]).read_text().replace("nola", "changing").replace("NOLA", "CHANGING"))
    text.write_text("The king went into the wood. " * 40)
    options = ("--model", base_folder, "--data", text, "--out", tmp_path / "run", "--r", 2, "--steps", 1)
    assert answer(qpeft_cli("train", *options, "--method", f"{file}:METHOD", "--json"))["already_finished"] is False
    monkeypatch.chdir(tmp_path)  # another spelling of the path is the same method
    assert answer(qpeft_cli("train", *options, "--method", "changing.py:METHOD", "--json"))["already_finished"]
    file.write_text(file.read_text() + "\n")
    refused = qpeft_cli("train", *options, "--method", f"{file}:METHOD")
    assert refused.exit_code == 2
    assert "holds a run with other files: method was" in refused.stderr


def test_name_that_the_file_lacks_is_refused_with_its_methods(qpeft_cli, base_folder):
    result = qpeft_cli("plan", "--model", base_folder, "--method", f"{FILE.rpartition(':')[0]}:ABSENT")
    assert result.exit_code == 2
    assert "'ABSENT'; it has METHOD" in " ".join(result.output.split())
