"""Every command takes a user's ansatz, examples/own_ansatz.py, as FILE.py:NAME."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qpeft.circuits import ansatz
from qpeft.compare.plan import make_plan
from qpeft.compare.study import Study
from qpeft.diagnostics.retraining import study_of
from qpeft.errors import ConfigError
from qpeft.training.run_folder import RunFolder

FILE = Path(__file__).resolve().parents[2] / "examples/own_ansatz.py"
ANSATZ = f"{FILE}:cz_ring"
OPTIONS = ("--r", 2, "--n-layers", 2, "--steps", 3, "--seq-len", 32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    (path := tmp_path_factory.mktemp("text") / "text.txt").write_text("The king went into the wood. " * 60)
    return path


@pytest.fixture(scope="module")
def trained(qpeft_cli, base_folder, text, tmp_path_factory):
    """A run folder."""
    out = tmp_path_factory.mktemp("own") / "run"
    shown = qpeft_cli("train", "--model", base_folder, "--data", text, "--out", out, "--ansatz", ANSATZ, *OPTIONS)
    assert shown.exit_code == 0, shown.output
    return out


def answer(shown):
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def test_plan_counts_the_angles_of_the_ansatz(qpeft_cli, base_folder, trained):
    counts = answer(qpeft_cli("plan", "--model", base_folder, "--ansatz", ANSATZ, "--r", 2, "--n-layers", 2, "--json"))
    assert counts["trainable_parts"]["angles"] == 2 * 2 * counts["n_qubits"]
    assert json.loads((trained / "result.json").read_text())["trainable"] == counts["trainable"]


def test_preset_is_combined_with_an_ansatz(qpeft_cli):
    options = ("--r", 4, "--preset", "paper", "--n-layers", 2, "--json")
    counts = answer(qpeft_cli("plan", "--model", "embedded", "--ansatz", ANSATZ, *options))
    assert counts["trainable_parts"]["angles"] == 2 * 2 * counts["n_qubits"]
    assert len(counts["hidden"]) == 7


def test_adapter_stores_the_name_and_the_run_the_hash_of_the_file(trained):
    assert json.loads((trained / "adapter/adapter_config.json").read_text())["ansatz"] == "cz_ring"
    card = (trained / "adapter/README.md").read_text()
    assert "# first import the module that registers the ansatz 'cz_ring'\nimport qpeft" in card
    record = json.loads((trained / "config.json").read_text())
    assert record["settings"]["method_settings"]["ansatz"] == ANSATZ
    assert len(record["identity"]["ansatz"]) == 64


def test_commands_load_the_adapter(qpeft_cli, trained, text, tmp_path):
    scored = answer(qpeft_cli("evaluate", "--adapter", trained, "--data", text, "--ansatz", ANSATZ, "--json"))
    assert scored["adapted"]["loss"] != scored["base"]["loss"]
    exported = answer(qpeft_cli("export", trained, "--out", tmp_path / "stock", "--ansatz", ANSATZ, "--json"))
    assert exported["max_logit_difference"] <= 1e-5
    found = answer(qpeft_cli("circuits", "draw", "--adapter", trained, "--ansatz", ANSATZ, "--json"))
    assert (found["ansatz"], found["n_layers"]) == ("cz_ring", 2)
    diagnosis = answer(qpeft_cli("diagnose", trained, "--ansatz", ANSATZ, "--samples", 10, "--json"))
    assert diagnosis["facts"]["Ansatz"] == "cz_ring"


def test_adapter_of_an_unregistered_ansatz_names_the_option(trained):
    """In a process of its own, that has not executed the file."""
    command = [sys.executable, "-m", "qpeft", "generate", "--adapter", str(trained), "--prompt", "The"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"add --ansatz {ANSATZ}" in " ".join(refused.stderr.split())
    assert subprocess.run([*command, "--ansatz", ANSATZ], capture_output=True).returncode == 0


def test_repeated_training_executes_only_the_file_that_is_given(trained):
    recorded = RunFolder(trained).settings()
    with pytest.raises(ConfigError, match=r"trained cz_ring, an ansatz of your own; .* --ansatz FILE.py:cz_ring"):
        study_of(recorded, [0])
    study = study_of(recorded, [0], ansatz="elsewhere.py:cz_ring")
    assert {spec.settings.get("ansatz") for spec in study.methods} == {None, "elsewhere.py:cz_ring"}


def test_finished_run_of_a_changed_file_is_refused(qpeft_cli, base_folder, text, tmp_path, monkeypatch):
    file = tmp_path / "changing.py"
    file.write_text(FILE.read_text().replace("cz_ring", "changing"))
    options = ("--model", base_folder, "--data", text, "--out", tmp_path / "run", *OPTIONS)
    assert answer(qpeft_cli("train", *options, "--ansatz", f"{file}:changing", "--json"))["already_finished"] is False
    monkeypatch.chdir(tmp_path)  # another spelling of the path is the same ansatz
    assert answer(qpeft_cli("train", *options, "--ansatz", "changing.py:changing", "--json"))["already_finished"]
    file.write_text(file.read_text() + "\n")
    refused = qpeft_cli("train", *options, "--ansatz", f"{file}:changing")
    assert refused.exit_code == 2
    assert "holds a run with other files: ansatz was" in refused.stderr


OWN_NAME = """
from qpeft.circuits import register_ansatz
register_ansatz("ry_ladder", lambda n, layers: (layers, n), lambda n, layers: [])
"""


def test_file_without_a_name_is_refused(qpeft_cli):
    refused = qpeft_cli("circuits", "draw", "--ansatz", "mine.py")
    assert refused.exit_code == 2
    assert "name the ansatz that this file registers as well, mine.py:NAME" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "mine", "the file .* does not exist"),
        ("raise KeyError('angle')", "mine", "mine: KeyError: 'angle'"),
        ("", "mine", "the file does not register 'mine', registered are"),
        ("", "ry_ladder", "the file does not register 'ry_ladder', which is an ansatz of qpeft"),
        (OWN_NAME, "ry_ladder", "ConfigError: the name 'ry_ladder' is already registered"),
    ],
)
@pytest.mark.parametrize("command", [("plan", "--model", "BASE"), ("circuits", "draw")], ids=lambda words: words[0])
def test_bad_file_is_refused(qpeft_cli, base_folder, tmp_path, code, name, message, command):
    if code is not None:
        (tmp_path / "bad.py").write_text(code)
    words = [base_folder if word == "BASE" else word for word in command]
    refused = qpeft_cli(*words, "--ansatz", f"{tmp_path / 'bad.py'}:{name}")
    assert refused.exit_code == 2
    assert re.search(message, " ".join(refused.stderr.split()))


def test_study_trains_the_ansatz_and_hashes_its_file(qpeft_cli, base_folder, text, tmp_path):
    file = tmp_path / "studied.py"
    file.write_text(FILE.read_text().replace("cz_ring", "studied"))
    study = {
        "name": "own",
        "title": "A ring of CZ",
        "question": "Is it LoRA?",
        "methods": [
            {"key": "lora", "method": "lora", "settings": {"r": 1}},
            {"key": "ring", "method": "qpa", "settings": {"r": 2, "n_layers": 2, "ansatz": f"{file}:studied"}},
        ],
        "training": {"steps": 2, "batch_size": 2, "seq_len": 32, "eval_blocks": 4},
        "tuning": {"grid": [1.0]},
        "seeds": [0],
        "test_blocks": 4,
        "capacity": False,
        "costs": False,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(study))
    options = ("--base", base_folder, "--data", text, "--out")
    shown = qpeft_cli("compare", "run", tmp_path / "own.yaml", *options, tmp_path / "out", "--json")
    assert answer(shown)["n_done"] == 2
    assert f"the study executes the code in {file}" in " ".join(shown.stderr.split())

    (tmp_path / "moved").mkdir()
    moved = shutil.move(file, tmp_path / "moved/studied.py")
    study["methods"][1]["settings"]["ansatz"] = f"{moved}:studied"
    ansatz._families.pop("studied")  # as in a new process

    def hashes():
        found = make_plan(Study(**study, base=str(base_folder), data=str(text)), tmp_path / "out").study.methods
        return {method.key: method.hash for method in found}

    before = hashes()
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert {row["method_config"]["hash"] for row in rows} == set(before.values())
    Path(moved).write_text(Path(moved).read_text() + "\n")
    after = hashes()
    assert after["lora"] == before["lora"]
    assert after["ring"] != before["ring"]


@pytest.fixture
def bad_gates(tmp_path):
    """FILE.py:NAME of an ansatz with RZZ, which is not an allowed gate."""
    text = FILE.read_text().replace('"cz_ring"', '"bad_gates"').replace('Gate("cz", ', 'Gate("rzz", ')
    (tmp_path / "bad_gates.py").write_text(text)
    yield f"{tmp_path / 'bad_gates.py'}:bad_gates"
    ansatz._families.pop("bad_gates", None)


@pytest.mark.parametrize(
    "command", [("plan", "--model", "BASE"), ("circuits", "draw"), ("circuits", "count")], ids=lambda words: words[-1]
)
def test_unknown_gate_is_refused_with_exit_code_2(qpeft_cli, base_folder, bad_gates, command):
    words = [base_folder if word == "BASE" else word for word in command]
    refused = qpeft_cli(*words, "--ansatz", bad_gates)
    assert refused.exit_code == 2
    message = " ".join(refused.stderr.split())
    assert re.search(r"ansatz bad_gates with .* Gate\('rzz', \(0, 1\)\) is unknown; allowed are rx, ry, rz", message)


def test_training_with_an_unknown_gate_is_refused_before_the_run_folder_exists(
    qpeft_cli, base_folder, text, tmp_path, bad_gates
):
    options = ("--model", base_folder, "--data", text, "--out", tmp_path / "run", *OPTIONS)
    refused = qpeft_cli("train", *options, "--ansatz", bad_gates)
    assert refused.exit_code == 2, refused.output
    assert "'rzz', (0, 1)) is unknown" in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ansatz": "BAD"}, r"ansatz bad_gates with .* Gate\('rzz', \(0, 1\)\) is unknown; allowed are rx"),
        ({"features": 12}, "features must be a power of two, got 12; use 8 or 16"),
        ({"ansatz": "efficient_su"}, "unknown ansatz 'efficient_su'; did you mean 'efficient_su2'[?]"),
    ],
    ids=["gate", "features", "name"],
)
def test_study_with_an_invalid_circuit_is_refused(qpeft_cli, base_folder, text, tmp_path, bad_gates, settings, message):
    settings = {name: bad_gates if value == "BAD" else value for name, value in settings.items()}
    study = {
        "name": "bad",
        "title": "A circuit that is not valid",
        "question": "Is it refused?",
        "reference": "ring",
        "methods": [{"key": "ring", "method": "qpa", "settings": {"r": 2, **settings}}],
        "training": {"steps": 2, "batch_size": 2, "seq_len": 32, "eval_blocks": 4},
        "seeds": [0],
    }
    (tmp_path / "bad.yaml").write_text(json.dumps(study))
    options = ("--base", base_folder, "--data", text, "--out", tmp_path / "out")
    refused = qpeft_cli("compare", "run", tmp_path / "bad.yaml", *options)
    assert refused.exit_code == 2, refused.output
    assert re.search(message, " ".join(refused.stderr.split()))
    assert not (tmp_path / "out").exists()
