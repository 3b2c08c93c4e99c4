"""`qpeft train`: its exit codes, and a run of a file with --config."""

import json
import signal

import pytest

from qpeft_lab.cli.progress import TrainingBar
from qpeft_lab.training.run_folder import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")


@pytest.fixture
def train(qpeft_cli, base_folder, text, tmp_path):
    """Train a few steps; further options as given."""
    paths = ("--model", base_folder, "--data", text, "--out", tmp_path / "run")
    return lambda *options: qpeft_cli("train", *paths, "--r", 8, "--steps", 4, "--batch-size", 4, *options)


def test_finished_run_is_not_trained_again(train, tmp_path):
    method = ("--method", "lora", "--target-modules", "q_proj", "--seed", 3)
    shown = train(*method)
    assert shown.exit_code == 0, shown.output
    assert str(tmp_path / "run" / "exported") in shown.stdout
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["method_settings"], settings["seed"]) == ({"r": 8, "target_modules": ["q_proj"]}, 3)
    again = json.loads(train(*method, "--json").stdout)
    assert again["already_finished"]
    assert again["trainable"] == 2 * 8 * (16 + 16)


def test_interrupted_run_exits_with_code_130_and_resumes(train, tmp_path, monkeypatch):
    def press(_bar, step, loss):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingBar, "on_step", press)
        assert train().exit_code == 130
    assert train().exit_code == 0
    steps = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4]


def test_loss_that_is_not_finite_exits_with_code_1(train):
    failed = train("--method", "lora", "--lr", "1e30", "--max-grad-norm", 0, "--warmup", 0)
    assert (failed.exit_code, failed.stdout) == (1, "")


@pytest.fixture
def config(base_folder, text, tmp_path):
    """A file with a run."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {base_folder}\ndata: {text}\nout: {tmp_path / 'run'}\nsteps: 2\nbatch_size: 2\nseq_len: 32\nlr: 1e-3\n"
        "method: qpa\nmethod_settings: {r: 2, hidden: [6, 5], chunk_size: 32}\nbackend_settings: {shots: 100}\n"
    )
    return path


def test_run_of_a_file_is_overridden_by_options(qpeft_cli, config, tmp_path):
    options = ("--per-device-batch-size", 1, "--learning-rate", 0.01, "--chunk-size", 16, "--shots", 50, "--steps", 2)
    result = qpeft_cli("train", "--config", config, *options)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["method_settings"] == {"r": 2, "hidden": [6, 5], "chunk_size": 16}
    assert [settings[name] for name in ("batch_size", "lr", "steps", "seq_len")] == [1, 0.01, 2, 32]
    assert settings["backend_settings"] == {"shots": 50}
    notes = [line for line in result.stderr.splitlines() if "overrides" in line]  # --steps is that of the file
    assert sorted(note.split()[1] for note in notes) == ["--batch-size", "--chunk-size", "--lr", "--shots"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("batch_sise: 2", "batch_size"),
        ("method_settings: {hiden: [6]}", "hidden"),
        ("backend_settings: {shot: 3}", "shots"),
    ],
)
def test_field_of_a_file_that_is_wrong_is_refused(qpeft_cli, config, tmp_path, content, named):
    config.write_text(config.read_text().partition("method_s")[0] + content)
    refused = qpeft_cli("train", "--config", config, "--json")
    assert refused.exit_code == 2
    assert named in json.loads(refused.stdout)["message"]
    assert not (tmp_path / "run").exists()
