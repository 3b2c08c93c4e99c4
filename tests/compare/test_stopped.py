"""A runner that is killed or interrupted: nothing runs on, and the same command goes on. See tests/test_kills.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted_cells
import pytest
from planted_cells import TINY_STUDY, timeless_rows, untimed_plan

from qpeft.compare.rows import read_rows
from qpeft.compare.running import locks
from qpeft.compare.running.runner import run

pytestmark = [pytest.mark.xdist_group("comparison"), pytest.mark.long]

PLANTED = """
import sys
from pathlib import Path
import planted_cells
from qpeft.compare.running import local_executor
from qpeft.compare.running import runner
local_executor._PRELOAD = "planted_cells"  # nothing heavy
runner.write_all = lambda folder: None
plan = planted_cells.PlantedPlan(Path(sys.argv[1]))
runner.run(plan, workers=2, run_cell=planted_cells.run_cell)
"""
TINY = """
import sys
from planted_cells import untimed_plan
from qpeft.compare.running.runner import run
run(untimed_plan(*sys.argv[1:]))
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    support = str(Path(planted_cells.__file__).parent)
    paths = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)


def test_no_cell_outlives_its_runner(tmp_path):
    process = start(PLANTED, tmp_path)
    while not (tmp_path / "journal").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    locks.wait_for_earlier_cells(tmp_path, lambda _: None)  # they end by themselves
    state = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.json"))
    time.sleep(5 * planted_cells.SECONDS)
    assert state == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.json"))


def test_real_trainings_interrupted_end_with_the_same_bits(tiny_model, text_file, tmp_path):
    """One run is interrupted while it trains, another is left alone."""
    study = tmp_path / "small.yaml"
    study.write_text(TINY_STUDY.format(base=tiny_model, data=text_file))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(untimed_plan(whole, study))
    process = start(TINY, broken, study)
    wait_for_checkpoints(broken, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode in (-signal.SIGINT, 1)
    assert "Run the same command again to resume" in errors
    assert len(list(read_rows(broken))) < 8
    run(untimed_plan(broken, study))
    assert timeless_rows(broken) == timeless_rows(whole)
    assert len(timeless_rows(whole)) == 8


def wait_for_checkpoints(folder: Path, process: subprocess.Popen) -> None:
    """Until a training has saved a step that was not there before."""
    before = checkpoints(folder)
    while checkpoints(folder) <= before:
        assert process.poll() is None, "the run ended before it could be broken"
        time.sleep(0.005)


def checkpoints(folder: Path) -> set[Path]:
    return set((folder / "work").rglob("checkpoint-*"))
