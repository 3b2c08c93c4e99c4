"""Damaged files load correctly or are refused, which the check does not miss; killed commands
resume.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from folders import read_rows

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


def test_checks_that_are_missing_are_found(world, monkeypatch):
    for check in (
        "checkpoint.check_weights",
        "checkpoint.check_whole",
        "compact_state.check_tensors",
    ):
        monkeypatch.setattr(f"qpeft.core.{check}", lambda *_: None)
    found = [
        load["outcome"]
        for number in range(100)
        for load in bad_files.mutated(world, f"1 {number}")["loads"]
    ]
    assert {*found} - {*bad_files.RIGHT}


ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="kills.py forks and reads /proc")
def test_killed_commands_resume_to_equal_results(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "kills.py",
        "--out",
        tmp_path / "kills",
        "--kills",
        "30",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = read_rows(tmp_path / "kills" / "kills.jsonl")

    assert [row["faults"] for row in rows] == [[]] * 30, done.stderr
    assert done.returncode == 0, done.stderr
    assert {row["case"] for row in rows} == {
        "qpa",
        "quantum_peft",
        "lora",
        "sora",
        "shots",
        "compare",
    }
    assert {"change" in row for row in rows} == {True, False}


PLANTED = {
    "incomplete checkpoints": (
        "checkpoints._hashes = lambda p: {f.name: checkpoints.file_hash(f) for f in p.iterdir()}"
    ),
    "the optimizer's state is lost": (
        "transformers.Trainer._load_optimizer_and_scheduler = lambda *_: None"
    ),
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="kills.py forks and reads /proc")
@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defects_are_found_by_kills(tmp_path, defect):
    code = f"""
import sys, transformers, kills
from qpeft_lab.training import checkpoints
{PLANTED[defect]}
sys.exit(kills.main(["--out", "{tmp_path}", "--kills", "30", "--what", "lora"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    rows = read_rows(tmp_path / "kills.jsonl")

    assert (done.returncode, any(row["faults"] for row in rows)) == (1, True), done.stderr
