"""Kills of real commands by benchmarks/kills.py, which must also detect planted defects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="kills.py forks and reads /proc"),
]

ROOT = Path(__file__).parents[1]


def test_killed_commands_resume_to_equal_results(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--out", tmp_path / "kills", "--kills", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in (tmp_path / "kills" / "kills.jsonl").read_text().splitlines()]
    assert [row["faults"] for row in rows] == [[]] * 30, done.stderr
    assert done.returncode == 0, done.stderr
    assert {row["case"] for row in rows} == {"qpa", "quantum_peft", "lora", "sora", "qaa", "shots", "compare"}
    assert {"change" in row for row in rows} == {True, False}


def test_planted_defects_are_detected(tmp_path):
    command = [sys.executable, ROOT / "tests" / "support" / "planted_defects.py", tmp_path / "planted"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unnoticed" not in done.stdout
    assert done.stdout.count("runs with a fault") == 4  # without a defect, and with each of three
