"""`qpeft compare` on a tiny base: results, exit codes, invalid input, progress."""

import json

import planted_cells
import pytest
from synthetic_study import write_synthetic_study

from qpeft.cli.compare_bar import CompareBar
from qpeft.cli.console import stderr
from qpeft.compare.rows import Quality, Row, Train

pytestmark = pytest.mark.xdist_group("comparison")

STUDY = """
name: small
title: A small study
question: Does the command line work?
base: {base}
data: {data}
seeds: [0, 1]
tuning: {{grid: [1.0]}}
training: {{steps: 3, batch_size: 2, seq_len: 32, eval_every: 3, eval_blocks: 2}}
test_blocks: 2
capacity: false
methods:
  - {{key: none, method: none}}
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: ia3, method: ia3, lr: 0.01}}
"""


@pytest.fixture
def study(base_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The king went into the wood, and the golden bird sang. " * 60)
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.format(base=base_folder, data=text))
    return path


@pytest.fixture
def untimed(monkeypatch):
    """Cells that measure time are slow, and tested elsewhere."""
    monkeypatch.setattr("qpeft.compare.plan.Plan.cost_cells", lambda self, rows: [])


@pytest.mark.long
def test_failed_cell_exits_with_code_3_and_is_retried(qpeft_cli, study, untimed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("qpeft.compare.runner.run_in_threads", planted_cells.crash_in_ia3)
        crashed = qpeft_cli("compare", "run", study, "--out", out, "--json")
    assert crashed.exit_code == 3, crashed.output
    found = json.loads(crashed.stdout)
    assert {failure["cell_id"].split("/")[1] for failure in found["failures"]} == {"ia3"}
    assert {failure["error_msg"] for failure in found["failures"]} == {"planted"}
    statuses = {method["key"]: method["statuses"] for method in found["methods"]}
    assert statuses == {
        "none": {"0": "success", "1": "success"},
        "lora": {"0": "success", "1": "success"},
        "ia3": {"0": "failed", "1": "failed"},
    }
    assert "ia3 seed1: failed: planted" in crashed.stderr

    kept = qpeft_cli("compare", "run", study, "--out", out)
    assert kept.exit_code == 3  # a failed cell is not run again without --retry
    assert "5 of 5 cells are already done" in kept.stderr
    assert "failed: small/ia3/" in kept.stderr

    mended = qpeft_cli("compare", "run", study, "--out", out, "--retry", "failed")
    assert mended.exit_code == 0, mended.output
    assert "3 of 5 cells are already done" in mended.stderr
    for word in ("A small study", "Test loss", "Δ to lora", "preliminary", "2/2", f"{out / 'report.html'}\n"):
        assert word in mended.stdout

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = qpeft_cli("compare", "run", study, "--out", out, "--json")
    assert (again.exit_code, json.loads(again.stdout)["n_done"]) == (0, 0)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert f"qpeft compare run {study} --out {out}" in (out / "report.html").read_text()


def test_plan_counts_cells_and_writes_nothing(qpeft_cli, study, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = qpeft_cli("compare", "plan", study, "--seeds", "0,1,2", "--steps", 5, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cells"] == {"tuning": 0, "final": 7, "cost": 2}
    assert set(found["hours"]) == {"tuning", "final", "cost"}
    assert found["study"]["training"]["steps"] == 5
    assert found["study"]["command"] == f"qpeft compare run {study} --steps 5 --seeds 0,1,2 --out small"
    assert sorted(tmp_path.iterdir()) == before
    assert "epochs of the training data" in qpeft_cli("compare", "plan", study, "--epochs", 1).stdout
    shown = qpeft_cli("compare", "plan", study)
    for word in ("lora", "0.01", "final runs", "max_hours is 8"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["surwey"], "unknown study 'surwey'; did you mean 'survey'? Choose one of bits, budgets, controls"),
        (["survey", "--steps", 0], "training.steps"),
        (["survey", "--seeds", "1,1"], "seeds: duplicate seed"),
        (["survey", "--base", "no/such/folder"], "no/such/folder"),
    ],
)
def test_invalid_study_exits_with_code_2_before_any_cell(qpeft_cli, tmp_path, arguments, message):
    result = qpeft_cli("compare", "run", *arguments, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 2, result.output
    assert message in json.loads(result.stdout)["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--retry", "failed,broken"], "cannot retry 'broken'"),
        (["--executor", "slurm"], "unknown executor 'slurm'"),
        (["--task", "translation"], "unknown task 'translation'"),
        (["--max-hours", 1e-9], "exceeds --max-hours=1e-09. Reduce steps, seeds or methods, or raise --max-hours."),
    ],
)
def test_invalid_options_exit_with_code_2_before_any_cell(qpeft_cli, study, tmp_path, options, message):
    result = qpeft_cli("compare", "run", study, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_report_is_made_from_rows_alone(qpeft_cli, tmp_path):
    folder = write_synthetic_study(tmp_path / "study")
    result = qpeft_cli("compare", "report", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    methods = {method["key"]: method for method in found["methods"]}
    assert methods["prefix"]["statuses"]["3"] == "missing"
    assert methods["twin"]["difference"]["verdict"] == "no difference shown"
    assert [failure["status"] for failure in found["failures"]] == ["diverged", "failed"]  # no trial of a learning rate
    assert (folder / "report.html").is_file()
    shown = qpeft_cli("compare", "report", folder, env={"COLUMNS": "120"})
    for word in ("Controls", "trainable parameters of qaa", "no difference shown", "4/5", "3/5"):
        assert word in shown.stdout
    assert "A learning rate outside those tried may be better for Quantum-PEFT." in shown.stderr


def test_folder_without_a_study_exits_with_code_2(qpeft_cli, tmp_path):
    result = qpeft_cli("compare", "report", tmp_path)
    assert result.exit_code == 2
    assert "study.json" in result.stderr


class Planned:
    """The fields of a cell that the bar reads."""

    def __init__(self, method, name, role="main"):
        self.method, self.name, self.role, self.cell_id = method, name, role, f"s/{method}/h/{name}"

    def row(self, status="success", **fields):
        return Row(cell_id=self.cell_id, study="s", method=self.method, role=self.role, seed=0, status=status, **fields)


def show(monkeypatch):
    """A run of three cells: one succeeds, one fails, one is in progress."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("qpeft.cli.compare_bar.time.monotonic", lambda: float(next(clock)))
    cells = [Planned("lora", "lr0.1", "tuning"), Planned("qpa", "seed0"), Planned("lora", "seed0")]
    with CompareBar() as bar:
        bar.on_plan(cells, 2, 1)
        bar.on_note("Starting Ray")
        for cell, row in (
            (cells[0], cells[0].row(quality=Quality(valid_loss=2.5, best_step=0), train=Train(lr=0.1))),
            (cells[1], cells[1].row("failed", error_msg="no\nluck")),
        ):
            bar.on_start(cell)
            bar.on_step(cell, 1, 2)
            bar.on_row(cell, row)
        bar.on_start(cells[2])
        bar.on_step(cells[2], 1, 4)


def test_bar_without_a_terminal_prints_a_line_per_cell(capsys, monkeypatch):
    show(monkeypatch)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Note: 2 of 5 cells are already done",
        "Note: Starting Ray",
        "3 of 5: lora lr0.1: validation loss 2.5000, did not improve on the base, 10 s",
        "4 of 5: qpa seed0: failed: no luck, 10 s",
    ]


def test_bar_on_a_terminal_shows_running_cell_and_time_left(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stderr.cache_clear()  # whether it is a terminal was seen before
    show(monkeypatch)
    shown = capsys.readouterr().err
    for word in ("lora seed0", "4 of 5 cells", "left", "85%"):
        assert word in shown
    stderr.cache_clear()
