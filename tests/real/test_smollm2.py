"""SmolLM2-135M-Instruct, as `qpeft base` builds it from its package: `make test-real`.

The tests fail without the base: CI builds it, and shall not skip them.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import losses, weights
from snippets import ROOT

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

STEPS = 6
RUN = (
    "train --model smollm2 --data examples/restaurants/train.jsonl --batch-size 2 --seq-len 128"
    " --method qpa --r 4 --budget 0.5 --lr 1e-3 --eval-blocks 4 --save-every 1"
    f" --steps {STEPS} --eval-every {STEPS}"
).split()


def test_killed_run_resumes_with_equal_bits_and_its_export_needs_no_qpeft(
    qpeft_cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)  # where build/smollm2 is
    killed, whole, exported = (tmp_path / name for name in ("killed", "whole", "exported"))
    words = map(str, [sys.executable, "-m", "qpeft", *RUN, "--out", killed])
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (killed / "checkpoints" / "checkpoint-2").exists():
        time.sleep(0.02)
    process.kill()

    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()

    for folder in (killed, whole):
        qpeft_cli(*RUN, "--out", folder, code=0)
    resumed = weights(killed / "adapter")
    assert all(tensor.equal(resumed[name]) for name, tensor in weights(whole / "adapter").items())
    assert losses(killed) == losses(whole)

    first, *_, last = (row["eval_loss"] for row in losses(whole) if "eval_loss" in row)
    assert last < first

    # loads it in a process that cannot import qpeft, and compares logits
    content = json.loads(qpeft_cli("export", killed, "--out", exported, "--json", code=0).stdout)
    assert content["max_logit_difference"] <= 1e-4
    assert json.loads((exported / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("name", ["circuit", "signs"])
def test_ready_adapter_lowers_the_loss_of_its_base(name, qpeft_cli, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = f"evaluate --adapter examples/adapters/{name} --eval-blocks 4 --json"
    command += " --data examples/restaurants/test.jsonl"
    scores = json.loads(qpeft_cli(command, code=0).stdout)
    assert scores["adapted"]["loss"] < scores["base"]["loss"]


@pytest.mark.long
def test_run_of_the_serving_guide_ends_without_help_and_is_not_repeated(tmp_path, monkeypatch):
    """With two of the customers and two steps of training."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("serve_run")
    monkeypatch.setattr(script, "CUSTOMERS", {"ana": "restaurants", "emil": "numpy"})
    script.run_all(tmp_path, tmp_path / "data", steps=2)
    result = script.collected(tmp_path)
    for customer in result["customers"].values():
        assert customer["trainable"] == 392
        assert customer["folder_bytes"] < 1200

    assert (tmp_path / "ana.gguf").stat().st_size > 1e6
    assert result["answers"].keys() == {"__base__", "ana", "emil"}
    assert result["equal_alone"]
    assert result["revisions"]["restored"] == result["revisions"]["before"]
    assert len(result["milliseconds"]) == 6

    monkeypatch.setattr(subprocess, "Popen", None)
    script.run_all(tmp_path, tmp_path / "data", steps=2)
    assert script.collected(tmp_path) == result


@pytest.mark.long
def test_run_of_the_guide_ends_without_help_and_is_not_repeated(tmp_path, monkeypatch):
    """With two steps of training instead of forty, and short answers."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("real_run")
    short = script.ANSWERS.replace("48", "4").replace("32", "4")
    monkeypatch.setattr(script, "ANSWERS", short)
    script.run_all(tmp_path, steps=2)
    found = script.collected(tmp_path)

    assert found["adapters"].keys() == script.ADAPTERS.keys()

    for name, adapter in found["adapters"].items():
        assert len(adapter["losses"]) == 2, name
        assert 0 <= adapter["bleu"]["adapted"] <= 100
        assert adapter["trainable"] > 0 < adapter["processor_seconds"]
    assert found["adapters"]["suggested"]["trainable"] <= 1300

    monkeypatch.setattr(subprocess, "Popen", None)
    script.run_all(tmp_path, steps=2)
    assert script.collected(tmp_path) == found
