import json
import signal
from dataclasses import replace

import pytest

from qpeft.training.metrics_log import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The king went into the wood, and the golden bird sang. " * 40)
    return path


@pytest.fixture
def train(qpeft_cli, base_folder, text, tmp_path):
    """Train a few steps; further options as given."""
    paths = ("--model", base_folder, "--data", text, "--out", tmp_path / "run")
    sizes = ("--r", 8, "--steps", 4, "--batch-size", 4)
    return lambda *options: qpeft_cli("train", *paths, *sizes, *options)


def test_train_prints_the_scores_and_how_to_load(train, tmp_path):
    shown = train()
    assert shown.exit_code == 0
    assert "perplexity before" in shown.stdout
    assert "perplexity after" in shown.stdout
    assert f"{tmp_path / 'run' / 'exported'} loads with plain PEFT" in shown.stdout
    assert "import qpeft" not in shown.stdout


def test_train_notes_a_loss_that_increased(train, tmp_path):
    from rich.console import Console

    from qpeft.cli.train import _show
    from qpeft.training.metrics import ClassificationScore
    from qpeft.training.result import read_result
    from qpeft.training.run_folder import RunFolder

    assert "the loss is higher" not in train().stdout
    result = read_result(RunFolder(tmp_path / "run").result)
    console = Console(width=100)
    with console.capture() as captured:
        _show(console, replace(result, after=replace(result.before, nats=result.before.nats + 1)))
    assert "the loss is higher than before training; try a lower --lr" in captured.get()
    right, wrong = ClassificationScore(9.0, 4, 4), ClassificationScore(1.0, 0, 4)
    with console.capture() as captured:
        _show(console, replace(result, before=wrong, after=right))
    assert "the accuracy rose, but the loss is higher than before training" in captured.get()


def test_finished_run_is_not_trained_again(train):
    first = json.loads(train("--json").stdout)
    again = train()
    assert "is finished; nothing was trained" in again.stdout
    assert json.loads(train("--json").stdout) == first | {"already_finished": True}


def test_method_and_its_options_are_passed_on(train, tmp_path):
    result = json.loads(train("--method", "lora", "--target-modules", "q_proj", "--seed", 3, "--json").stdout)
    assert result["trainable"] == 2 * 8 * (16 + 16)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["method_settings"] == {"r": 8, "target_modules": ["q_proj"]}
    assert config["settings"]["seed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", 0), "steps must be at least 1, got 0"),
        (("--target-modules", "q_porj"), "nearest names: q_proj"),
        (("--data", "absent.txt"), "no file or folder absent.txt"),
    ],
)
def test_bad_input_exits_with_code_2_and_makes_no_run_folder(train, tmp_path, options, message):
    refused = train(*options)
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


def test_interrupted_run_exits_with_code_130_and_resumes(train, tmp_path, monkeypatch):
    from qpeft.cli import bar

    def press(_bar, step, loss):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(bar._Run, "on_step", press)
        stopped = train()
    assert stopped.exit_code == 130
    assert "Stopped after step 2 of 4. Run the same command again to resume." in stopped.stderr
    assert train().exit_code == 0
    steps = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4]


def test_loss_that_is_not_finite_exits_with_code_1(train):
    failed = train("--method", "lora", "--lr", "1e30", "--max-grad-norm", 0, "--warmup", 0)
    assert failed.exit_code == 1
    assert "is nan at step" in failed.stderr
