"""The feed-forward adapter on the command line: plan, train, and export, which is refused."""

import json

import pytest


@pytest.fixture
def run(qpeft_cli, base_folder, tmp_path):
    (tmp_path / "text.txt").write_text("The king went into the wood, and the golden bird sang. " * 40)
    paths = ("--model", base_folder, "--data", tmp_path / "text.txt", "--out", tmp_path / "run")
    shown = qpeft_cli("train", *paths, "--method", "bottleneck", "--bottleneck-size", 4, "--steps", 2)
    assert shown.exit_code == 0, shown.output
    return shown.stdout, tmp_path / "run"


def test_plan_counts_the_parameters(qpeft_cli, base_folder):
    options = ("--model", base_folder, "--method", "bottleneck", "--bottleneck-size", 4)
    found = json.loads(qpeft_cli("plan", *options, "--json").stdout)
    assert found["trainable"] == found["deployed"] == 2 * (2 * 16 * 4 + 4 + 16)
    assert found["exported_bytes"] is None
    assert "cannot be merged" in " ".join(qpeft_cli("plan", *options).stdout.split())


def test_train_names_the_folder_that_needs_qpeft(run):
    stdout, folder = run
    shown = " ".join(stdout.split())
    assert f"{folder}/adapter loads with qpeft" in shown
    assert "plain PEFT" not in shown
    assert "import qpeft" in shown


def test_export_refuses_before_any_work(run, qpeft_cli, tmp_path):
    shown = qpeft_cli("export", run[1], "--out", tmp_path / "exported")
    assert shown.exit_code == 2
    assert "cannot be exported as a stock PEFT adapter" in " ".join(shown.output.split())
    assert not (tmp_path / "exported").exists()
