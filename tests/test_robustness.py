"""Damaged files load correctly or are refused, which the check does not miss; killed commands resume."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import bad_files

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return bad_files.prepare(tmp_path_factory.mktemp("bad-files") / "made")


def test_200_damaged_files_load_correctly_or_are_refused(world):
    rows = [bad_files.mutated(world, f"1 {number}") for number in range(200)]
    loads = [(row, load) for row in rows for load in row["loads"]]
    assert not [(row, load) for row, load in loads if load["outcome"] not in bad_files.RIGHT]
    assert {row["good"] for row in rows} == {*world.goods}
    outcomes = Counter(load["outcome"] for _, load in loads)
    assert outcomes["refused"] > 100
    assert outcomes["correct"] > 20


def found(world, name, change=lambda copy: None, way="qpeft.load"):
    """The outcome of a load of `name` after `change(copy)`, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        copy = bad_files.copied(world, name, Path(place))
        change(copy)
        asked = bad_files.Load(world, name, copy)
        (report,), _ = bad_files.in_child(lambda report: report(bad_files.outcome_of(asked, way)))
    return report["outcome"]


def rename_tensors(copy):
    file = copy / "adapter_model.safetensors"
    save_file({name.replace("lora_B", "lora_Bx"): tensor for name, tensor in load_file(file).items()}, file)


def test_loader_that_ignores_missing_tensors_is_detected(world, monkeypatch):
    assert found(world, "exported-qpa", rename_tensors) == "refused"
    for name in ("check_whole", "check_seal"):
        monkeypatch.setattr(f"qpeft.core.checkpoint.{name}", lambda *_: None)
    assert found(world, "exported-qpa", rename_tensors) == "base model returned"


def test_loader_with_other_values_is_detected(world, monkeypatch):
    from qpeft.core import checkpoint

    load = checkpoint.PeftModel.from_pretrained

    def shifted(*args, **kwargs):
        model = load(*args, **kwargs)
        next(p for n, p in model.named_parameters() if "lora_A" in n).data.add_(0.5)
        return model

    assert found(world, "exported-qpa") == "correct"
    monkeypatch.setattr(checkpoint.PeftModel, "from_pretrained", shifted)
    assert found(world, "exported-qpa") == "other values"


def test_uninformative_errors_crashes_and_hangs_are_detected(world, monkeypatch):
    for raised, outcome in (
        (AttributeError("x has no y"), "wrong error"),
        (ValueError("x" * 10_000), "unclear message"),
    ):
        monkeypatch.setattr("qpeft.load", Mock(side_effect=raised))
        assert found(world, "adapter-qpa") == outcome
    monkeypatch.setattr(bad_files, "SECONDS", 0.5)
    assert bad_files.in_child(lambda report: os.abort())[1].startswith("crash")
    assert bad_files.in_child(lambda report: time.sleep(60))[1] == "hang"


ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="kills.py forks and reads /proc")
def test_killed_commands_resume_to_equal_results(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--out", tmp_path / "kills", "--kills", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in (tmp_path / "kills" / "kills.jsonl").read_text().splitlines()]
    assert [row["faults"] for row in rows] == [[]] * 30, done.stderr
    assert done.returncode == 0, done.stderr
    assert {row["case"] for row in rows} == {"qpa", "quantum_peft", "lora", "sora", "qaa", "shots", "compare"}
    assert {"change" in row for row in rows} == {True, False}
