"""The runner with cells that train nothing: order, resuming, retries, failures; and the file of its
rows.
"""

import json
import math
import signal
import threading
import time
from dataclasses import replace

import planted_cells as cells
import pytest

from qpeft.errors import CheckpointError, ConfigError, TrainingError
from qpeft_lab.compare import local, runner
from qpeft_lab.compare.cell import failed_row, work_folder
from qpeft_lab.compare.local import log_path
from qpeft_lab.compare.rows import RowFile, cell_id, is_failure, read_rows
from qpeft_lab.compare.runner import run
from qpeft_lab.compare.summary import load
from qpeft_lab.files import RUN_AGAIN, json_line, locked
from qpeft_lab.progress import CompareProgress

pytestmark = pytest.mark.xdist_group("comparison")  # one process that forks, for all


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    """Nothing is drawn."""
    monkeypatch.setattr(runner, "write_outputs", lambda folder: None)


@pytest.fixture
def plan(tmp_path):
    return cells.PlantedPlan(tmp_path)


class Recorder(CompareProgress):
    """Records all events."""

    def __init__(self):
        self.totals, self.ended = [], {}

    def on_total(self, n_cells, n_finished):
        self.totals.append((n_cells, n_finished))

    def on_row(self, cell, row):
        self.ended[cell.cell_id] = row["status"]


def test_one_process_has_the_group(request):
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("pytest-xdist does not divide these tests")
    assert request.node.nodeid.endswith("@comparison")


def test_phases_run_in_order_and_a_second_run_does_nothing(plan):
    progress = Recorder()
    outcome = run(plan, progress=progress, run_cell=cells.run_cell)
    assert outcome.n_done == 12
    assert outcome.n_skipped == 0
    assert outcome.failures == []

    expected = [f"{method} lr{rate}" for method in ("lora", "qpa") for rate in (0.1, 0.2, 0.4)]
    expected += ["lora seed0", "qpa seed0", "lora seed1", "qpa seed1", "lora cost", "qpa cost"]
    assert [f"{one.split('/')[1]} {one.split('/')[3]}" for one in progress.ended] == expected
    assert progress.totals == [(12, 0), (12, 6), (12, 10), (12, 12)]
    # the lower loss
    assert all(row["lr"] == 0.2 for name, row in plan.rows().items() if "seed" in name)
    assert not (plan.folder / "work").exists()

    before = (plan.folder / "rows.jsonl").read_bytes()
    again = Recorder()
    outcome = run(plan, progress=again, run_cell=cells.run_cell)

    assert outcome.n_done == 0
    assert outcome.n_skipped == 12
    assert again.ended == {}
    assert again.totals == [(12, 12)]
    assert (plan.folder / "rows.jsonl").read_bytes() == before


def test_times_are_measured_again_when_the_reference_is_another_method(plan):
    run(plan, run_cell=cells.run_cell)
    other = replace(plan.setup, reference=cells.planned("qpa"))
    object.__setattr__(plan, "setup", other)
    progress = Recorder()
    run(plan, progress=progress, run_cell=cells.run_cell)
    assert [one.rpartition("/")[2] for one in progress.ended] == ["cost", "cost"]
    assert run(plan, run_cell=cells.run_cell).n_done == 0


def test_running_cells_report_their_steps(plan):
    class Witness(CompareProgress):
        def on_cell(self, cell, reached):
            cells.journal(plan.folder, f"seen {cell.cell_id} {reached.step} of {reached.steps}")

    outcome = run(plan, workers=2, progress=Witness(), run_cell=cells.run_until_seen)
    assert outcome.failures == []


def test_parallel_rows_equal_sequential_rows_and_cost_cells_run_alone(plan, tmp_path):
    run(plan, run_cell=cells.run_cell)
    several = cells.PlantedPlan(tmp_path / "several", methods=("lora", "qpa", "qaa"))
    run(several, workers=3, run_cell=cells.run_in_company)

    assert {name: row for name, row in several.rows().items() if "qaa" not in name} == plan.rows()

    lines = [line.split() for line in (several.folder / "journal").read_text().splitlines()]
    at_once = 0
    most = {"tuning": 0, "cost": 0}
    for what, name in lines:
        at_once += {"waiting": 1, "begin": 0, "end": -1}[what]
        phase = "cost" if name.endswith("cost") else "tuning"
        most[phase] = max(most[phase], at_once)

    assert most["cost"] == 1
    assert most["tuning"] > 1


def test_failed_cells_have_rows_and_the_others_succeed(tmp_path):
    methods = ("lora", "raises", "killed", "ends", "exits", "qpa")
    plan = cells.PlantedPlan(tmp_path, methods)
    outcome = run(plan, workers=2, run_cell=cells.run_or_fail)
    rows = plan.rows()

    assert len(rows) == 6 * len(methods)  # every cell has its row

    trials = {method: plan.row(method, "lr0.1") for method in methods}
    found = {method: row["status"] for method, row in trials.items()}
    failed = dict.fromkeys(("raises", "killed", "ends", "exits"), "failed")

    assert found == {"lora": "success", "qpa": "success", **failed}
    assert trials["raises"]["error_type"] == "RuntimeError"
    assert trials["raises"]["error"] == "planted"
    assert "in _raises" in trials["raises"]["traceback"]

    for method, code in {
        "killed": -9,
        "ends": 7,
    }.items():  # a code may be lost while another process starts
        assert any(
            f"exit code {code}" in (row.get("error") or "")
            for row in rows.values()
            if row["method"] == method
        )
    assert trials["exits"]["error_type"] == "SystemExit"
    assert trials["exits"]["error"] == "9"
    assert {row["method"] for row in outcome.failures} == set(methods) - {"lora", "qpa"}

    log = log_path(plan.folder, plan.tuning_cells({})[3])
    assert "a word of a library" in log.read_text()


def test_failed_cells_run_again_only_with_retry(tmp_path):
    plan = cells.PlantedPlan(tmp_path, ("lora", "raises"))
    first = run(plan, run_cell=cells.run_or_fail)
    assert len(first.failures) == 6

    kept = run(plan, run_cell=cells.run_cell)
    assert kept.n_done == 0
    assert len(kept.failures) == 6

    mended = run(plan, retry=True, run_cell=cells.run_cell)
    assert mended.n_done == 6  # what could not run before is run now, without being asked for
    assert mended.failures == []


def test_seeds_run_again_if_the_chosen_learning_rate_changes(plan):
    run(plan, run_cell=cells.run_cell)
    lost = {**plan.row("lora", "lr0.2"), "status": "failed"}
    RowFile(plan.folder).append(lost)
    stale = load(plan.folder)["lora"]  # if it was stopped here
    assert stale.lr == 0.1
    assert stale.lost == "2 missing"
    assert stale.mean("test_loss") is None
    outcome = run(plan, run_cell=cells.run_cell)
    assert outcome.n_done == 3
    assert {plan.row("lora", name)["lr"] for name in ("seed0", "seed1", "cost")} == {0.1}


def test_row_of_other_work_is_not_taken_for_the_row_of_a_cell(plan):
    changes = ({"lr": 0.3}, {"hash": "of other work"})
    changed = plan.tuning_cells({})[:2]
    for cell, change in zip(changed, changes, strict=True):
        row = cells.planted_row(cell, status="success", valid_loss=1.0)
        RowFile(plan.folder).append(row | change)
    run(plan, progress=(progress := Recorder()), run_cell=cells.run_cell)

    assert {cell.cell_id for cell in changed} <= set(progress.ended)


def test_interrupted_run_reports_what_is_left_and_resumes(plan, tmp_path):
    place = plan.folder / "work" / "lora" / cells.planned("lora").hash / "seed0-lr0.2"

    def interrupt():
        while not (place / "checkpoint.json").exists():
            time.sleep(cells.SECONDS / 10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()

    with pytest.raises(KeyboardInterrupt, match="6 cells are left"):
        run(plan, run_cell=cells.run_cell)
    assert len(plan.rows()) == 6
    assert 1 <= json.loads((place / "checkpoint.json").read_text())["step"] < cells.STEPS

    run(plan, run_cell=cells.run_cell)
    assert (plan.folder / "journal").read_text().count("resume") == 1  # from the checkpoint

    unbroken = cells.PlantedPlan(tmp_path / "unbroken")
    run(unbroken, run_cell=cells.run_cell)
    assert plan.rows() == unbroken.rows()


def test_second_run_in_the_same_folder_is_rejected(plan):
    with runner.locked(plan.folder), pytest.raises(ConfigError, match="another process"):
        run(plan, run_cell=cells.run_cell)


def test_cell_waits_for_the_process_of_a_killed_run(plan):
    """The first cell's folder is locked until the second cell ends."""
    plan.claim()
    first = plan.tuning_cells({})[0]
    lock = locked(work_folder(first, plan.folder))
    lock.__enter__()

    class Releasing(Recorder):
        def on_row(self, cell, row):
            super().on_row(cell, row)
            if len(self.ended) == 1:
                lock.__exit__(None, None, None)

    progress = Releasing()
    outcome = run(plan, workers=2, progress=progress, run_cell=cells.run_cell)

    assert outcome.failures == []
    assert next(iter(progress.ended)) != first.cell_id


def test_cell_fails_if_the_process_of_a_killed_run_does_not_end(plan, monkeypatch):
    plan.claim()
    first = plan.tuning_cells({})[0]
    monkeypatch.setattr(local, "_PATIENCE", 0.0)
    with locked(work_folder(first, plan.folder)):
        outcome = run(plan, run_cell=cells.run_cell)

    assert [cell_id(row) for row in outcome.failures] == [first.cell_id]
    assert outcome.failures[0]["error_type"] == "ConfigError"


def test_error_of_a_full_disk_names_the_option_that_helps(plan):
    row = failed_row(
        plan.tuning_cells({})[0], TrainingError(f"is full. Free some space and {RUN_AGAIN}")
    )
    assert row["error"].endswith("Free some space and run the command again with --retry failed")


def test_diverged_trial_is_no_failure():
    statuses = [
        ("tuning", "diverged"),
        ("tuning", "success"),
        ("tuning", "failed"),
        ("main", "diverged"),
    ]
    assert [is_failure({"role": role, "status": status}) for role, status in statuses] == [
        False,
        False,
        True,
        True,
    ]


# rows


def row(name="seed0", **fields):
    identity = {
        "study": "study",
        "method": "lora",
        "hash": "hash",
        "name": name,
        "role": "main",
        "seed": 0,
    }
    return identity | {"status": "success", **fields}


@pytest.mark.parametrize("length", [1, 40, -2, -1])
def test_incomplete_last_line_is_ignored_and_removed_before_the_next_append(tmp_path, length):
    (tmp_path / "rows.jsonl").write_text(json_line(row("seed0")) + json_line(row("seed1"))[:length])
    kept = ["seed0", "seed1"] if length == -1 else ["seed0"]  # it lacks only its line break
    assert [one["name"] for one in read_rows(tmp_path).values()] == kept
    RowFile(tmp_path).append(row("seed2"))
    assert [one["name"] for one in read_rows(tmp_path).values()] == [*kept, "seed2"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        json.dumps(row(seed="0")),
        json.dumps({**row(), "status": None}),
        '{"status": "failed", ' + json.dumps(row())[1:],  # a key twice
    ],
)
def test_damaged_line_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(
        json_line(row("seed0")) + line + "\n" + json_line(row("seed1"))
    )
    with pytest.raises(
        CheckpointError,
        match=r"rows\.jsonl is damaged in line 2 .*delete the line, and its cell runs",
    ):
        read_rows(tmp_path)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    RowFile(tmp_path).append(row(test_loss=math.nan, curve=[[0, math.inf, 0.0]], n=10**400))
    (found,) = read_rows(tmp_path).values()
    assert found["test_loss"] is None
    assert found["curve"] == [[0, None, 0.0]]
    assert found["n"] == 10**400
