"""Code of others: of a base model and of a study. It is executed only where the user has asked for it."""

import json
import shutil

import pytest

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
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(base_folder, tmp_path / "own-base")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


@pytest.fixture
def own_adapter(tmp_path, adapter_folder, own_base):
    """An adapter that names this base."""
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(own_base)}))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--adapter", "ADAPTER", "--data", "TEXT"),
        ("generate", "--adapter", "ADAPTER", "--prompt", "The king"),
        ("export", "ADAPTER", "--out", "OUT"),
        ("plan", "--model", "BASE"),
        ("train", "--model", "BASE", "--data", "TEXT", "--out", "OUT"),
        ("compare", "plan", "survey", "--base", "BASE", "--data", "TEXT"),
        ("compare", "run", "survey", "--base", "BASE", "--data", "TEXT", "--out", "OUT"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_code_of_a_base_model_is_not_executed(qpeft_cli, command, own_base, own_adapter, text, tmp_path, marker):
    places = {"BASE": own_base, "ADAPTER": own_adapter, "TEXT": text, "OUT": tmp_path / "out"}
    done = qpeft_cli(*(places.get(word, word) for word in command), input="y\n" * 9)
    assert done.exit_code == 2, done.output
    assert "trust" in done.stderr
    assert not marker.exists()


def test_code_of_a_base_model_is_executed_on_request(qpeft_cli, own_base, text, marker):
    done = qpeft_cli("evaluate", "--model", own_base, "--data", text, "--seq-len", 16, "--trust-remote-code")
    assert done.exit_code == 0, done.output
    assert marker.exists()


def test_plan_of_a_study_names_and_does_not_execute_its_backend(qpeft_cli, base_folder, text, tmp_path, marker):
    (device := tmp_path / "device.py").write_text(f"open({str(marker)!r}, 'w')\nNAME = None\n")
    (study := tmp_path / "study.yaml").write_text(f"""
name: small
title: A study
question: Does a plan execute it?
base: {base_folder}
data: {text}
reference: lora
training: {{steps: 1, seq_len: 16, batch_size: 1}}
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}}}
  - {{key: qpa, method: qpa, settings: {{r: 2, budget: 200, hidden: [2]}}, backend: {{backend: "{device}:NAME"}}}}
""")
    done = qpeft_cli("compare", "plan", study)
    assert done.exit_code == 0, done.output
    assert str(device) in done.stderr
    assert not marker.exists()
