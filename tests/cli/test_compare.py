"""`qpeft compare` on a tiny base: results, exit codes, invalid input, progress."""

import json

import planted_cells
import pytest
from synthetic_study import write_synthetic_study

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
    monkeypatch.setattr("qpeft_lab.compare.plan.Plan.cost_cells", lambda self, rows: [])


@pytest.mark.long
def test_failed_cell_exits_with_code_3_and_is_retried(qpeft_cli, study, untimed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("qpeft_lab.compare.runner.run_in_threads", planted_cells.crash_in_ia3)
        crashed = qpeft_cli("compare", "run", study, "--out", out, "--json")
    assert crashed.exit_code == 3, crashed.output
    found = json.loads(crashed.stdout)
    assert {failure["cell_id"].split("/")[1] for failure in found["failures"]} == {"ia3"}
    assert {failure["error"] for failure in found["failures"]} == {"planted"}
    statuses = {method["key"]: method["statuses"] for method in found["methods"]}
    assert statuses == {
        **dict.fromkeys(("none", "lora"), "0:success 1:success"),
        "ia3": "0:failed 1:failed",
    }
    assert "ia3 seed1: failed: planted" in crashed.stderr

    kept = qpeft_cli("compare", "run", study, "--out", out)
    assert kept.exit_code == 3  # a failed cell is not run again without --retry
    assert "5 of 5 cells are already done" in kept.stderr
    assert "failed: small/ia3/" in kept.stderr

    mended = qpeft_cli("compare", "run", study, "--out", out, "--retry", "failed")
    assert mended.exit_code == 0, mended.output
    assert "3 of 5 cells are already done" in mended.stderr
    for word in ("A small study", "Test loss", "Difference", f"{out / 'report.html'}\n"):
        assert word in mended.stdout

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = qpeft_cli("compare", "run", study, "--out", out, "--json")
    assert (again.exit_code, json.loads(again.stdout)["n_done"]) == (0, 0)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "qpeft compare run small.yaml --out out" in (out / "report.html").read_text()


def test_plan_counts_cells_and_writes_nothing(qpeft_cli, study, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = qpeft_cli("compare", "plan", study, "--seeds", "0,1,2", "--steps", 5, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cells"] == {"tuning": 0, "final": 7, "cost": 2}
    assert found["study"]["training"]["steps"] == 5
    assert found["study"]["command"] == f"qpeft compare run {study} --seeds 0,1,2 --steps 5 --out small"
    assert sorted(tmp_path.iterdir()) == before
    shown = qpeft_cli("compare", "plan", study)
    for word in ("lora", "0.01", "final"):
        assert word in shown.stdout


def test_invalid_option_exits_with_code_2_before_any_cell(qpeft_cli, study, tmp_path):
    result = qpeft_cli("compare", "run", study, "--out", tmp_path / "out", "--retry", "nowhere")
    assert result.exit_code == 2, result.output
    assert "nowhere" in result.stderr
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_report_is_made_from_rows_alone(qpeft_cli, tmp_path):
    folder = write_synthetic_study(tmp_path / "study")
    result = qpeft_cli("compare", "report", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    methods = {method["key"]: method for method in found["methods"]}
    assert "3:missing" in methods["prefix"]["statuses"]
    assert methods["twin"]["delta.verdict"] == "no difference shown"
    assert [failure["status"] for failure in found["failures"]] == ["diverged", "failed"]  # no trial of a learning rate
    assert (folder / "report.html").is_file()
    shown = qpeft_cli("compare", "report", folder, env={"COLUMNS": "120"})
    for word in ("LoRA again is not shown to differ", "QAA", "1 diverged", "2 missing"):
        assert word in shown.stdout
    assert "A learning rate outside those tried may be better for: Quantum-PEFT." in shown.stderr
