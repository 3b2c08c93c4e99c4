"""Processes of cells: on Ray, ended with their runner, interrupted and resumed. See also
tests/test_robustness.py.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import planted_cells as cells
import pytest

from qpeft.errors import ConfigError
from qpeft_lab.compare import runner
from qpeft_lab.compare.plan import Plan, make_plan
from qpeft_lab.compare.runner import run
from qpeft_lab.compare.study import load_study
from qpeft_lab.files import locked

pytestmark = [pytest.mark.xdist_group("comparison"), pytest.mark.long]
PATHS = os.pathsep.join([str(Path(cells.__file__).parent), os.environ.get("PYTHONPATH", "")])


def test_training_with_ray_is_bit_equal(tiny_model, text_file, tmp_path, monkeypatch):
    """On a cluster that the run starts and ends itself."""
    ray = pytest.importorskip("ray")
    study = tmp_path / "small.yaml"
    study.write_text(cells.TINY_STUDY.format(base=tiny_model, data=text_file))
    monkeypatch.setattr(Plan, "cost_cells", lambda self, rows: [])  # which measure time
    here, there = (make_plan(load_study(str(study)), tmp_path / name) for name in ("here", "there"))
    run(here)
    run(there, workers=2, executor="ray")
    rows = cells.timeless_rows(there.folder)

    assert rows == cells.timeless_rows(here.folder)
    assert [row["status"] for row in rows.values()] == ["success"] * 10
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster():
    """What a user would have started; its workers find the planted cells."""
    ray = pytest.importorskip("ray")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, **quiet, runtime_env={"env_vars": {"PYTHONPATH": PATHS}})
    yield ray
    ray.shutdown()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "write_outputs", lambda folder: None)
    return cells.PlantedPlan(tmp_path)


def test_rows_equal_those_of_the_local_executor(plan, cluster, tmp_path):
    outcome = run(plan, workers=2, executor="ray", run_cell=cells.run_cell)
    assert outcome.n_done == 12
    assert outcome.failures == []

    local = cells.PlantedPlan(tmp_path / "local")
    run(local, run_cell=cells.run_cell)
    assert plan.rows() == local.rows()

    lines = [line.split() for line in (plan.folder / "journal").read_text().splitlines()]
    costs = [what for what, cell_id in lines if cell_id.endswith("cost")]
    assert costs == ["begin", "end"] * 2  # alone
    assert cluster.is_initialized()  # what was there before the run is there after it


def test_crashed_cell_has_one_failed_row(plan, cluster):
    crashing = cells.PlantedPlan(plan.folder, ("lora", "raises", "killed"))
    outcome = run(crashing, workers=2, executor="ray", run_cell=cells.run_or_fail)
    statuses = {name: row["status"] for name, row in crashing.rows().items()}

    assert len(statuses) == 18
    assert {row["method"] for row in outcome.failures} == {"raises", "killed"}
    assert crashing.row("raises", "lr0.1")["error"] == "planted"
    assert "exit code -9" in crashing.row("killed", "lr0.1")["error"]


def test_lost_worker_is_replaced_once(plan, cluster):
    from qpeft_lab.compare.ray import RayExecutor

    plan.claim()
    cell = plan.tuning_cells({})[0]
    with RayExecutor(plan.folder, cells.run_after_losing_a_worker) as executor:
        ((_, row),) = executor.run([cell])

    assert row["status"] == "success"
    assert (plan.folder / "journal").read_text().splitlines()[0] == "lost"


def test_missing_ray_is_named(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray"):
        run(plan, executor="ray")


# killed and interrupted runners

PLANTED = """
import sys
from pathlib import Path
import planted_cells as cells
from qpeft_lab.compare import local, runner
local._PRELOAD = "planted_cells"  # nothing heavy
runner.write_outputs = lambda folder: None
"""


def test_cells_end_with_their_runner(tmp_path):
    """Two cells that never end by themselves: each holds a lock as long as its process lives."""
    script = (
        "runner.run(cells.PlantedPlan(Path(sys.argv[1])), workers=2, run_cell=cells.run_forever)"
    )
    command = [sys.executable, "-c", PLANTED + script, tmp_path]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS})
    while (
        not (tmp_path / "journal").exists() or (tmp_path / "journal").read_text().count("begin") < 2
    ):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    locks = list(tmp_path.rglob("work/*/*/*/.lock"))

    assert len(locks) == 2

    for lock in locks:
        with locked(lock.parent, patience=60):
            pass
