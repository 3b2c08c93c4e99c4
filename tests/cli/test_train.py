"""`qpeft train`: its exit codes, and a run of a file with --config; `qpeft demo` with a tiny base
and a small text.
"""

import json

import pytest

from qpeft import methods
from qpeft.files import read_json
from qpeft_lab.cli import demo as demo_command
from qpeft_lab.training.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")


def test_finished_run_is_not_trained_again(qpeft_cli, base_folder, text, tmp_path):
    command = f"train --model {base_folder} --data {text} --out {tmp_path}/run --steps 4"
    command += " --batch-size 4 --method lora --r 8 --target-modules q_proj --seed 3"
    shown = qpeft_cli(command, code=0)

    assert str(tmp_path / "run" / "exported") in shown.stdout

    settings = read_json(tmp_path / "run" / "config.json")["settings"]
    assert settings["method_settings"] == {"r": 8, "target_modules": ["q_proj"]}
    assert settings["seed"] == 3

    again = json.loads(qpeft_cli(f"{command} --json").stdout)
    assert again["already_finished"]
    assert again["trainable"] == 2 * 8 * (16 + 16)


def test_run_of_a_file_is_overridden_by_options(qpeft_cli, base_folder, text, tmp_path):
    (config := tmp_path / "run.yaml").write_text(
        f"model: {base_folder}\ndata: {text}\nout: {tmp_path / 'run'}\nsteps: 2\nbatch_size:"
        " 2\nseq_len: 32\nlr: 1e-3\nmethod: qpa\nmethod_settings: {r: 2, hidden: [6, 5],"
        " chunk_size: 32}\nbackend_settings: {shots: 100}\n"
    )
    options = "--per-device-batch-size 1 --learning-rate 0.01 --chunk-size 16 --shots 50 --steps 2"
    result = qpeft_cli(f"train --config {config} {options}", code=0)
    settings = read_json(tmp_path / "run" / "config.json")["settings"]

    assert settings["method_settings"] == {"r": 2, "hidden": [6, 5], "chunk_size": 16}
    assert [settings[name] for name in ("batch_size", "lr", "steps", "seq_len")] == [1, 0.01, 2, 32]
    assert settings["backend_settings"] == {"shots": 50}

    # --steps is that of the file
    notes = [line for line in result.stderr.splitlines() if "overrides" in line]
    assert sorted(note.split()[1] for note in notes) == [
        "--batch-size",
        "--chunk-size",
        "--lr",
        "--shots",
    ]


def test_epochs_replace_the_steps_of_a_file(qpeft_cli, base_folder, text, tmp_path):
    run = (
        f"model: {base_folder}\ndata: {text}\nout: {tmp_path / 'run'}\nsteps: 5\nseq_len:"
        " 32\nmethod: lora\n"
    )
    (config := tmp_path / "run.yaml").write_text(run)
    assert "--epochs" in qpeft_cli(f"train --config {config} --num-epochs 0.01", code=0).stderr

    settings = read_json(tmp_path / "run" / "config.json")["settings"]
    assert settings["steps"] is None
    assert settings["epochs"] == 0.01


# demo


def test_demo_trains_reports_and_is_not_trained_twice(
    qpeft_cli, answer, base_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("qpeft_lab.cli.demo.base_path", lambda: base_folder)
    texts = [
        f"Parameters\n----------\na : array_like\n    Number {i} of the array." * 3
        for i in range(60)
    ]
    monkeypatch.setattr("qpeft_lab.demo.corpus.numpy_docs", lambda: texts)
    # the tiny adapter is smaller than the usual widths
    small = {"r": 4, "target_modules": "all-linear", "hidden": (6, 5), "chunk_size": 32}
    monkeypatch.setitem(demo_command.METHODS, "qpa", ("qpa", small))
    out = tmp_path / "demo"
    arguments = f"demo --steps 2 --out {out}"
    answered = answer(arguments)
    rates = {name: methods.get(name).learning_rate for name in ("lora", "qpa", "quantum_peft")}

    assert list(answered["runs"]) == list(rates)
    assert answered["learning_rates"] == rates
    assert {name: RunFolder(out / name).recorded()[0].lr for name in rates} == rates

    lora, qpa, quantum_peft = answered["runs"].values()
    for generated in (qpa, quantum_peft):
        # the same base, the same text
        assert lora["before"] == generated["before"] != generated["after"]
        assert lora["data_sha256"] == generated["data_sha256"]
    assert 2 * lora["deployed"] == 2 * qpa["deployed"] == quantum_peft["deployed"]  # rank 8, not 4
    assert quantum_peft["trainable"] < lora["trainable"]

    again = qpeft_cli(arguments, env={"COLUMNS": "80"})
    assert "remove the folder" in again.stderr

    for word in (
        *(f"{name} {rate:g}" for name, rate in rates.items()),
        f"{out}/quantum_peft/exported\n",
        "qpa-frozen",
    ):
        assert word in again.stdout
    qpeft_cli(f"demo --steps 3 --out {out}", code=2)
