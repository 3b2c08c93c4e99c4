"""`qpeft demo`, with a tiny base model and a small text instead of the embedded ones; its progress bar."""

import json

import pytest

from qpeft import methods
from qpeft_lab.cli import demo as demo_command
from qpeft_lab.training.run_folder import RunFolder

METHODS = dict(demo_command.METHODS)


@pytest.fixture(autouse=True)
def _tiny_demo(monkeypatch, base_folder):
    monkeypatch.setattr("qpeft_lab.cli.demo.base_path", lambda: base_folder)
    texts = [f"Parameters\n----------\na : array_like\n    Number {i} of the array." * 3 for i in range(60)]
    monkeypatch.setattr("qpeft_lab.demo.corpus.numpy_docs", lambda: texts)
    # the tiny adapter is smaller than the usual widths
    small = {"r": 4, "target_modules": "all-linear", "hidden": (6, 5), "chunk_size": 32}
    monkeypatch.setitem(demo_command.METHODS, "qpa", ("qpa", small))


def test_demo_trains_reports_and_is_not_trained_twice(qpeft_cli, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    arguments = ("demo", "--steps", 2, "--out", out)
    first = qpeft_cli(*arguments, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    names = ["lora", "qpa", "quantum_peft"]
    assert list(found["runs"]) == names
    assert found["learning_rates"] == {name: methods.named(name).learning_rate for name in names}
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
        patch.setattr("qpeft_lab.training.fit.fit", None)
        patch.setattr("qpeft_lab.training.fit._fit", None)  # training would fail
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

    other = qpeft_cli("demo", "--steps", 3, "--out", out)
    assert other.exit_code == 2
    assert "steps was 2, now 3" in other.stderr


def test_control_differs_from_qpa_only_in_its_circuit(tmp_path):
    settings = [demo_command.settings_of(name, tmp_path, 5) for name in ("qpa", "qpa-frozen")]
    qpa, control = settings
    assert control.method_settings == {**METHODS["qpa"][1], "feature_source": "qnn_frozen"}
    for name in ("model", "data", "steps", "lr", "batch_size", "seq_len", "seed", "eval_blocks"):
        assert getattr(qpa, name) == getattr(control, name)
