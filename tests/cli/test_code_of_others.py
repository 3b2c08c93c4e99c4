"""Code that is not qpeft's: a user's method and ansatz in every command, and that of a base model
or a study.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import edit_config, edit_json

from qpeft import user_code
from qpeft.circuits import ansatz as ansatz_table
from qpeft.files import read_json
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.study import Study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {"method": EXAMPLES / "own_method.py", "ansatz": EXAMPLES / "own_ansatz.py"}
NAMES = {"method": "METHOD", "ansatz": "cz_ring"}
SMALL = {"method": "--set n_bases=4", "ansatz": "--n-layers 2"}
STEPS = "--r 2 --steps 3 --seq-len 32"


def option(part):
    return f"--{part} {FILES[part]}:{NAMES[part]}"


@pytest.fixture(scope="module", params=FILES)
def trained(request, qpeft_cli, base_folder, text, tmp_path_factory):
    """The part that is a user's, and a run folder."""
    part = request.param
    out = tmp_path_factory.mktemp("own") / "run"
    paths = f"--model {base_folder} --data {text} --out {out}"
    qpeft_cli(f"train {paths} {option(part)} {SMALL[part]} {STEPS}", code=0)
    return part, out


@pytest.mark.usefixtures("verified_here")
def test_every_command_takes_the_file(answer, base_folder, text, trained, tmp_path):
    part, run = trained
    own = option(part)
    plan = answer(f"plan --model {base_folder} {own} {SMALL[part]} --r 2")
    result = read_json(run / "result.json")

    assert result["trainable"] == plan["trainable"]
    assert result["deployed"] == plan["deployed"]
    assert len(read_json(run / "config.json")["identity"][part]) == 64

    scored = answer(f"evaluate --adapter {run} --data {text} {own}")
    assert scored["adapted"]["loss"] != scored["base"]["loss"]
    assert answer(f"export {run} --out {tmp_path}/stock {own}")["max_logit_difference"] <= 1e-5
    assert answer(f"diagnose {run} {own} --samples 10")["findings"]

    if part == "ansatz":
        drawn = answer(f"circuits draw --adapter {run} {own}")
        assert drawn["ansatz"] == "cz_ring"
        assert drawn["n_layers"] == 2
        assert answer(f"circuits count {own} --n-qubits 3")["ansatz"] == "cz_ring"


def test_method_that_changed_since_its_run_is_refused(qpeft_cli, text, trained, tmp_path):
    """The export of another adapter said that it is verified."""
    part, run = trained
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    identity = read_json(config)["identity"]
    edit_json(config, identity={**identity, part: "0" * 64})  # of the file as it was
    is_refused = part == "method"  # an adapter knows the gates of its ansatz
    for command in (f"evaluate --data {text} --adapter", f"export --out {tmp_path}/new"):
        answered = qpeft_cli(f"{command} {tmp_path}/run {option(part)}", code=2 * is_refused)
        assert ("changed since the run" in answered.stderr) == is_refused
    shutil.copytree(run / "adapter", tmp_path / "copy")
    qpeft_cli(f"evaluate --data {text} --adapter {tmp_path}/copy {option(part)}", code=0)


def test_run_of_a_whole_model_names_where_that_is(qpeft_cli, base_folder, text, tmp_path):
    paths = f"--model {base_folder} --data {text} --out {tmp_path}/run"
    qpeft_cli(f"train {paths} --method full --steps 1 --seq-len 16", code=0)
    refused = qpeft_cli(f"evaluate --data {text} --adapter {tmp_path}/run", code=2)
    assert f"--model {tmp_path}/run/exported" in refused.stderr


def test_adapter_of_an_unregistered_name_names_the_option(qpeft_cli, trained, monkeypatch):
    part, run = trained
    command = f"generate --adapter {run} --prompt The"
    if part == "method":  # PEFT forgets it only in another process
        refused = subprocess.run(
            [sys.executable, "-m", "qpeft", *command.split()], capture_output=True, text=True
        )
        code = refused.returncode
        message = refused.stderr
    else:
        monkeypatch.delitem(ansatz_table._families, NAMES[part])
        refused = qpeft_cli(command)
        code = refused.exit_code
        message = refused.stderr

    assert code == 2
    assert option(part) in message


def study_with(ansatz, **changes):
    return {
        "name": "own",
        "title": "Own code",
        "question": "Does it run?",
        "tuning": {"grid": [1.0]},
        "seeds": [0],
        "test_blocks": 4,
        "costs": False,
        "methods": [
            {"key": "lora", "method": "lora", "settings": {"r": 1}},
            {
                "key": "nola",
                "method": f"{FILES['method']}:METHOD",
                "settings": {"r": 2, "n_bases": 4},
            },
            {
                "key": "ring",
                "method": "qpa",
                "settings": {"r": 2, "n_layers": 2, "ansatz": ansatz},
                **changes,
            },
        ],
        "run": {
            "model": "embedded",
            "data": "-",
            "steps": 2,
            "batch_size": 2,
            "seq_len": 32,
            "eval_blocks": 4,
        },
    }


def test_study_trains_both_and_hashes_their_files(answer, base_folder, text, tmp_path):
    (file := tmp_path / "studied.py").write_text(
        FILES["ansatz"].read_text().replace("cz_ring", "studied")
    )
    (tmp_path / "own.yaml").write_text(json.dumps(study_with(f"{file}:studied")))
    options = f"--model {base_folder} --data {text} --out {tmp_path}/out"

    assert answer(f"compare run {tmp_path}/own.yaml {options}")["n_done"] == 3

    def hashes(path):
        made = study_with(f"{path}:studied")
        made["run"] |= {"model": str(base_folder), "data": str(text)}
        study = Study(**made)
        return {
            method.key: method.hash for method in make_plan(study, tmp_path / "out").study.methods
        }

    ansatz_table._families.pop("studied")  # as in a new process
    before = hashes(moved := file.rename(tmp_path / "out" / "studied.py"))
    moved.write_text(moved.read_text() + "\n")
    user_code._used.clear()  # again
    after = hashes(moved)

    assert [key for key in before if before[key] != after[key]] == ["ring"]


# code that is wrong

WRONG = [
    *(
        (part, code)
        for part in ("ansatz", "method", "backend")
        for code in (None, "import sys; sys.exit(0)", "a = 1")
    ),
    ("method", "class Own(BaseException): pass\nraise Own"),
]


@pytest.mark.parametrize("part, code", WRONG, ids=lambda value: str(value)[-40:])
def test_code_that_is_wrong_is_refused(qpeft_cli, base_folder, text, tmp_path, part, code):
    name = f"of_{tmp_path.name}"
    if code is not None:
        (tmp_path / "own.py").write_text(code)
    paths = f"--model {base_folder} --data {text} --out {tmp_path}/run"
    refused = qpeft_cli(f"train {paths} {STEPS} --{part} {tmp_path}/own.py:{name}", code=2)
    ansatz_table._families.pop(name, None)

    assert name in refused.stderr
    assert not (tmp_path / "run").exists()


# code of others

CODE = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def own_base(tmp_path, base_folder, marker, monkeypatch):
    """A base model whose folder contains the code of its class."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder = shutil.copytree(base_folder, tmp_path / "own-base")
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_json(folder / "config.json", model_type="own", auto_map=auto)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


@pytest.fixture
def own_adapter(tmp_path, adapter_folder, own_base):
    """An adapter that names this base."""
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    edit_config(folder, base_model_name_or_path=str(own_base))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --adapter {adapter} --data {text}",
        "generate --adapter {adapter} --prompt king",
        "export {adapter} --out {out}",
        "plan --model {base}",
        "train --model {base} --data {text} --out {out}",
        "compare plan survey --model {base} --data {text}",
        "compare run survey --model {base} --data {text} --out {out}",
    ],
)
def test_code_of_a_base_model_is_not_executed(
    qpeft_cli, command, own_base, own_adapter, text, tmp_path, marker
):
    line = command.format(adapter=own_adapter, base=own_base, text=text, out=tmp_path / "out")
    done = qpeft_cli(line, input="y\n" * 9, code=2)
    assert "trust" in done.stderr
    assert not marker.exists()


def test_code_of_a_base_model_is_executed_on_request(qpeft_cli, own_base, text, marker):
    qpeft_cli(
        f"evaluate --model {own_base} --data {text} --seq-len 16 --trust-remote-code",
        code=0,
    )
    assert marker.exists()


def test_plan_of_a_study_names_and_does_not_execute_its_backend(
    qpeft_cli, base_folder, text, tmp_path, marker
):
    (device := tmp_path / "device.py").write_text(f"open({str(marker)!r}, 'w')\nNAME = None\n")
    study = study_with("ry_ladder", backend={"backend": f"{device}:NAME"})
    (file := tmp_path / "study.yaml").write_text(json.dumps(study))
    done = qpeft_cli(f"compare plan {file} --model {base_folder} --data {text}", code=0)
    assert str(device) in done.stderr
    assert not marker.exists()
