"""A user's method and ansatz, FILE.py:NAME, in every command; their errors; files that change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qpeft.circuits import ansatz as ansatz_table
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.study import Study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {"method": EXAMPLES / "own_method.py", "ansatz": EXAMPLES / "own_ansatz.py"}
NAMES = {"method": "METHOD", "ansatz": "cz_ring"}
SMALL = {"method": ("--set", "n_bases=4"), "ansatz": ("--n-layers", 2)}
STEPS = ("--r", 2, "--steps", 3, "--seq-len", 32)


def option(part, file=None):
    return f"--{part}", f"{file or FILES[part]}:{NAMES[part]}"


@pytest.fixture(scope="module", params=FILES)
def trained(request, qpeft_cli, base_folder, text, tmp_path_factory):
    """The part that is a user's, and a run folder."""
    part, out = request.param, tmp_path_factory.mktemp("own") / "run"
    paths = ("--model", base_folder, "--data", text, "--out", out)
    shown = qpeft_cli("train", *paths, *option(part), *SMALL[part], *STEPS)
    assert shown.exit_code == 0, shown.output
    return part, out


def test_every_command_takes_the_file(answer, base_folder, text, trained, tmp_path):
    part, run = trained
    own = option(part)
    plan = answer("plan", "--model", base_folder, *own, *SMALL[part], "--r", 2)
    result = json.loads((run / "result.json").read_text())
    assert (result["trainable"], result["deployed"]) == (plan["trainable"], plan["deployed"])
    assert len(json.loads((run / "config.json").read_text())["identity"][part]) == 64
    scored = answer("evaluate", "--adapter", run, "--data", text, *own)
    assert scored["adapted"]["loss"] != scored["base"]["loss"]
    assert answer("export", run, "--out", tmp_path / "stock", *own)["max_logit_difference"] <= 1e-5
    assert answer("diagnose", run, *own, "--samples", 10)["findings"]
    if part == "ansatz":
        drawn = answer("circuits", "draw", "--adapter", run, *own)
        assert (drawn["ansatz"], drawn["n_layers"]) == ("cz_ring", 2)
        assert answer("circuits", "count", *own, "--n-qubits", 3)["ansatz"] == "cz_ring"


def test_adapter_of_an_unregistered_name_names_the_option(trained):
    """In a process of its own, that has not executed the file."""
    part, run = trained
    command = [sys.executable, "-m", "qpeft", "generate", "--adapter", str(run), "--prompt", "The"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert " ".join(option(part)) in refused.stderr
    assert subprocess.run([*command, *option(part)], capture_output=True).returncode == 0


@pytest.mark.parametrize("part", FILES)
def test_finished_run_of_a_changed_file_is_refused(qpeft_cli, answer, base_folder, text, tmp_path, monkeypatch, part):
    code = FILES[part].read_text()
    for old in ("nola", "NOLA", "cz_ring"):
        code = code.replace(old, f"{old}_{part}")
    (file := tmp_path / f"changing_{part}.py").write_text(code)
    name = NAMES[part].replace("cz_ring", f"cz_ring_{part}")
    options = ("--model", base_folder, "--data", text, "--out", tmp_path / "run", *STEPS)
    first = answer("train", *options, f"--{part}", f"{file}:{name}")
    monkeypatch.chdir(tmp_path)  # another spelling of the path is the same file
    again = answer("train", *options, f"--{part}", f"{file.name}:{name}")
    assert (first["already_finished"], again["already_finished"]) == (False, True)
    file.write_text(code + "\n")
    refused = qpeft_cli("train", *options, f"--{part}", f"{file}:{name}")
    assert refused.exit_code == 2
    assert f"{part} was" in refused.stderr


def test_study_trains_both_and_hashes_their_files(answer, base_folder, text, tmp_path):
    (file := tmp_path / "studied.py").write_text(FILES["ansatz"].read_text().replace("cz_ring", "studied"))

    def study(ansatz):
        return {
            **{"name": "own", "title": "Own code", "question": "Does it run?", "tuning": {"grid": [1.0]}},
            "methods": [
                {"key": "lora", "method": "lora", "settings": {"r": 1}},
                {"key": "nola", "method": option("method")[1], "settings": {"r": 2, "n_bases": 4}},
                {"key": "ring", "method": "qpa", "settings": {"r": 2, "n_layers": 2, "ansatz": f"{ansatz}:studied"}},
            ],
            "training": {"steps": 2, "batch_size": 2, "seq_len": 32, "eval_blocks": 4},
            **{"seeds": [0], "test_blocks": 4, "costs": False},
        }

    (tmp_path / "own.yaml").write_text(json.dumps(study(file)))
    options = ("--base", base_folder, "--data", text, "--out", tmp_path / "out")
    assert answer("compare", "run", tmp_path / "own.yaml", *options)["n_done"] == 3

    def hashes(path):
        found = make_plan(Study(**study(path), base=str(base_folder), data=str(text)), tmp_path / "out").study.methods
        return {method.key: method.hash for method in found}

    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / "studied.py")
    ansatz_table._families.pop("studied")  # as in a new process
    before = hashes(moved)
    moved.write_text(moved.read_text() + "\n")
    after = hashes(moved)
    assert [key for key in before if before[key] != after[key]] == ["ring"]


# code that is wrong

ANSATZ = """
import random, sys
from qpeft.circuits import Gate, register_ansatz

def angle_shape(n_qubits, n_layers):
    return (n_layers, n_qubits)

def layers(n_qubits, n_layers):
    {in_layers}
    for layer in range(n_layers):
        yield [Gate({gate}, (wire,), (layer, wire)) for wire in range(n_qubits)]

register_ansatz("NAME", angle_shape, layers)
"""
WRONG = [
    *((part, code) for part in ("ansatz", "method", "backend") for code in (None, "import sys; sys.exit(0)", "a = 1")),
    ("method", "class Own(BaseException): pass\nraise Own"),
    ("ansatz", ANSATZ.format(in_layers="pass", gate="'rzz'")),
    ("ansatz", ANSATZ.format(in_layers="sys.exit(0)", gate="'ry'")),
    ("ansatz", ANSATZ.format(in_layers="pass", gate="random.choice(('rx', 'ry'))")),
]


@pytest.mark.parametrize(("part", "code"), WRONG, ids=lambda value: str(value)[-40:])
def test_code_that_is_wrong_is_refused(qpeft_cli, base_folder, text, tmp_path, part, code):
    name = f"of_{tmp_path.name}"
    if code is not None:
        (tmp_path / "own.py").write_text(code.replace("NAME", name))
    paths = ("--model", base_folder, "--data", text, "--out", tmp_path / "run")
    refused = qpeft_cli("train", *paths, *STEPS, f"--{part}", f"{tmp_path / 'own.py'}:{name}")
    ansatz_table._families.pop(name, None)
    assert refused.exit_code == 2, refused.output
    assert name in refused.stderr
    assert not (tmp_path / "run").exists()
