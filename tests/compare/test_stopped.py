"""A killed or interrupted runner leaves no process, and the same command resumes. See tests/test_kills.py."""

import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted_cells
import pytest
from planted_cells import TINY_STUDY, timeless_rows, untimed_plan

from qpeft_lab.compare.rows import read_rows
from qpeft_lab.compare.runner import run
from qpeft_lab.files import locked

pytestmark = [pytest.mark.xdist_group("comparison"), pytest.mark.long]

PLANTED = """
import sys
from pathlib import Path
import planted_cells
from qpeft_lab.compare import local
from qpeft_lab.compare import runner
local._PRELOAD = "planted_cells"  # nothing heavy
runner.write_outputs = lambda folder: None
plan = planted_cells.PlantedPlan(Path(sys.argv[1]))
runner.run(plan, workers=2, run_cell=planted_cells.run_forever)
"""
TINY = """
import sys
from planted_cells import untimed_plan
from qpeft_lab.compare.runner import run
run(untimed_plan(*sys.argv[1:]))
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    support = str(Path(planted_cells.__file__).parent)
    paths = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)


def test_cells_end_with_their_runner(tmp_path):
    """Two cells that never end by themselves: each holds a lock as long as its process lives."""
    process = start(PLANTED, tmp_path)
    while not (tmp_path / "journal").exists() or (tmp_path / "journal").read_text().count("begin") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    locks = list(tmp_path.rglob("work/*/*/*/.lock"))
    assert len(locks) == 2
    for lock in locks:
        with locked(lock.parent, patience=60):
            pass


def test_interrupted_runs_resume_bit_equal(tiny_model, text_file, tmp_path):
    """One run is interrupted during training, another one is not."""
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
    assert len(read_rows(broken)) < 10
    run(untimed_plan(broken, study))
    assert timeless_rows(broken) == timeless_rows(whole)
    assert len(timeless_rows(whole)) == 10  # a grid of two rates extends itself once


def wait_for_checkpoints(folder: Path, process: subprocess.Popen) -> None:
    """Wait until a run has saved a new checkpoint."""
    before = checkpoints(folder)
    while checkpoints(folder) <= before:
        assert process.poll() is None, "the run ended before it could be broken"
        time.sleep(0.005)


def checkpoints(folder: Path) -> set[str]:
    """With glob, which passes over folders that are being removed."""
    return set(glob.glob("work/**/checkpoint-*", root_dir=folder, recursive=True))  # noqa: PTH207
