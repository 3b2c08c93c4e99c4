"""`qpeft demo`, with a tiny base model and a small text instead of the embedded ones; its progress bar."""

import json

import pytest

import qpeft.demo.run
from qpeft import methods
from qpeft.cli.bar import TrainingBar
from qpeft.cli.console import stderr
from qpeft.training.metrics import LanguageModelScore
from qpeft.training.run_folder import RunFolder

METHODS = dict(qpeft.demo.run.METHODS)


@pytest.fixture(autouse=True)
def _tiny_demo(monkeypatch, base_folder):
    monkeypatch.setattr("qpeft.demo.run.base_path", lambda: base_folder)
    texts = [f"Parameters\n----------\na : array_like\n    Number {i} of the array." * 3 for i in range(60)]
    monkeypatch.setattr("qpeft.demo.corpus.numpy_docs", lambda: texts)
    # the tiny adapter is smaller than the usual widths
    small = {"r": 4, "target_modules": "all-linear", "hidden": (6, 5), "chunk_size": 32}
    monkeypatch.setitem(qpeft.demo.run.METHODS, "qpa", ("qpa", small))


@pytest.mark.filterwarnings("ignore:angles move at most:UserWarning")  # in two steps
def test_demo_trains_reports_and_is_not_trained_twice(qpeft_cli, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    arguments = ("demo", "--steps", 2, "--out", out)
    first = qpeft_cli(*arguments, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    names = ["lora", "qpa", "quantum_peft"]
    assert list(found["runs"]) == names
    assert found["request"]["learning_rates"] == {name: methods.named(name).learning_rate for name in names}
    assert all(RunFolder(out / name).settings().lr == methods.named(name).learning_rate for name in names)
    lora, qpa, quantum_peft = found["runs"].values()
    for generated in (qpa, quantum_peft):
        assert lora["before"] == generated["before"] != generated["after"]  # the same base, the same text
        assert lora["data_sha256"] == generated["data_sha256"]
    assert lora["deployed"] == qpa["deployed"] > qpa["trainable"]
    assert quantum_peft["deployed"] == 2 * lora["deployed"]  # rank 8, not 4
    assert quantum_peft["trainable"] < lora["trainable"]
    loaded: dict = {}
    exec(found["load"], loaded)
    assert loaded["model"].peft_config["default"].peft_type == "LORA"

    with monkeypatch.context() as patch:
        patch.setattr("qpeft.training.run.fit", None)
        patch.setattr("qpeft.training.run._fit", None)  # training would fail
        again = qpeft_cli(*arguments, env={"COLUMNS": "80"})
    assert again.exit_code == 0, again.output
    assert "holds the results of this demo" in again.stderr
    for word in (
        *(f"{name} {methods.named(name).learning_rate:g}" for name in found["runs"]),
        "perplexity",
        "base model",
        f"Exported adapter: {out}/quantum_peft/exported\n",
        "from peft import PeftModel",
        "qpa-frozen",
    ):
        assert word in again.stdout
    assert json.loads((out / "demo.json").read_text())["load"] == found["load"]

    other = qpeft_cli("demo", "--steps", 3, "--out", out)
    assert other.exit_code == 2
    assert "steps was 2, now 3" in other.stderr


@pytest.mark.parametrize(("methods", "named"), [("lora,qap", "did you mean 'qpa'?"), (",", "no demo method given")])
def test_unknown_method_exits_with_code_2(qpeft_cli, tmp_path, methods, named):
    result = qpeft_cli("demo", "--methods", methods, "--out", tmp_path / "demo")
    assert result.exit_code == 2
    assert named in result.stderr
    assert "lora, qpa, qpa-frozen, quantum_peft" in result.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["config.json", "demo.json", "notes.txt"])
def test_folder_with_other_content_is_refused_and_unchanged(qpeft_cli, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    result = qpeft_cli("demo", "--steps", 2, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert "is not empty and holds no demo; choose another folder" in result.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, '{"mine": 1}')]


def test_control_differs_from_qpa_only_in_its_circuit(tmp_path):
    settings = [qpeft.demo.run.settings_of(name, tmp_path, 5) for name in ("qpa", "qpa-frozen")]
    qpa, control = settings
    assert control.method_settings == {**METHODS["qpa"][1], "feature_source": "qnn_frozen"}
    for name in ("model", "data", "steps", "lr", "batch_size", "seq_len", "seed", "eval_blocks"):
        assert getattr(qpa, name) == getattr(control, name)


def test_bar_without_a_terminal_prints_only_the_scores(capsys):
    with TrainingBar(["lora", "qpa"], steps=3) as bar:
        run = bar.run("qpa")
        run.on_stage("Reading the data")
        run.on_start(3, 0)
        run.on_step(1, 2.5)
        run.on_eval(1, LanguageModelScore(2.0, 1, 1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "qpa, step 1: perplexity 7.39\n"


def test_bar_without_a_terminal_prints_a_line_every_30_seconds(capsys, monkeypatch):
    now = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr("qpeft.cli.bar.monotonic", lambda: next(now))
    with TrainingBar(["qpa"], steps=9) as bar:
        run = bar.run("qpa")
        for step in (1, 2, 3):
            run.on_step(step, 2.5)
    assert capsys.readouterr().err == "qpa, step 2 of 9: loss 2.500\n"


def test_bar_on_a_terminal_counts_the_steps_of_all_runs(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stderr.cache_clear()  # it remembers whether it is a terminal
    with TrainingBar(["lora", "qpa"], steps=3) as bar:
        run = bar.run("qpa")
        run.on_start(3, 0)
        run.on_step(2, 2.5)
        run.on_eval(2, LanguageModelScore(2.0, 1, 1))
    captured = capsys.readouterr()
    assert captured.out == ""
    for shown in ("5/6", "left", "loss 2.500", "qpa, step 2: perplexity 7.39"):
        assert shown in captured.err
    stderr.cache_clear()
