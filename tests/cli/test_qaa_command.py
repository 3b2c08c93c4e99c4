"""Methods without a stock form, QAA and bottleneck: plan, train, evaluate, generate; export is refused."""

import json

import pytest

QAA = ("--method", "qaa", "--ansatz", "rxyz", "--n-layers", 2)


@pytest.fixture(params=[QAA, ("--method", "bottleneck", "--bottleneck-size", 4)], ids=["qaa", "bottleneck"])
def run(request, qpeft_cli, base_folder, tmp_path):
    (tmp_path / "text.txt").write_text("The king went into the wood, and the golden bird sang. " * 40)
    paths = ("--model", base_folder, "--data", tmp_path / "text.txt", "--out", tmp_path / "run")
    shown = qpeft_cli("train", *paths, *request.param, "--steps", 2)
    assert shown.exit_code == 0, shown.output
    return shown.stdout, tmp_path / "run"


def test_plan_counts_the_parameters(qpeft_cli, base_folder):
    found = json.loads(qpeft_cli("plan", "--model", base_folder, *QAA, "--json").stdout)
    assert found["trainable"] == found["deployed"] == 4 * (24 + 16 * 4 + 16)
    assert (found["exported_bytes"], found["n_circuits"], found["dead_angles"]) == (None, 4, 16)
    shown = " ".join(qpeft_cli("plan", "--model", base_folder, *QAA).stdout.split())
    assert "16 angles of the last RZ block have no effect" in shown
    assert "cannot be merged" in shown
    options = ("--model", base_folder, "--method", "bottleneck", "--bottleneck-size", 4, "--json")
    found = json.loads(qpeft_cli("plan", *options).stdout)
    assert found["trainable"] == found["deployed"] == 2 * (2 * 16 * 4 + 4 + 16)
    assert found["exported_bytes"] is None


def test_control_is_an_option(qpeft_cli, base_folder):
    options = ("--model", base_folder, "--method", "qaa", "--feature-source", "quadratic", "--carry-norm", "--json")
    found = json.loads(qpeft_cli("plan", *options).stdout)
    assert found["trainable"] == 4 * (16 * 4 + 16)
    assert found["n_circuits"] is None


def test_train_evaluate_and_generate(run, qpeft_cli, base_folder, tmp_path):
    stdout, folder = run
    shown = " ".join(stdout.split())
    assert f"{folder}/adapter loads with qpeft" in shown
    assert "plain PEFT" not in shown
    adapter = ("--adapter", folder / "adapter", "--model", base_folder)
    scored = qpeft_cli("evaluate", *adapter, "--data", tmp_path / "text.txt", "--json")
    assert scored.exit_code == 0, scored.output
    found = json.loads(scored.stdout)
    assert found["adapted"]["loss"] != found["base"]["loss"]
    written = qpeft_cli("generate", *adapter, "--prompt", "The king", "--max-new-tokens", 4)
    assert written.exit_code == 0, written.output


def test_export_is_refused_before_any_work(run, qpeft_cli, tmp_path):
    for merge in ((), ("--merge",)):
        shown = qpeft_cli("export", run[1], *merge, "--out", tmp_path / "exported")
        assert shown.exit_code == 2, shown.output
        assert ("cannot be merged" if merge else "as a stock PEFT adapter") in " ".join(shown.output.split())
        assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "qpa", "--readout", "probs"), "not of method qpa; use --method qaa"),
        (("--method", "qaa", "--readout", "probs"), "Use --readout='z'."),
        (("--method", "qpa", "--feature-source", "givens"), "unknown --feature-source 'givens'; choose one of qnn"),
        (("--method", "qaa", "--preset", "official"), "unknown preset 'official' of method qaa"),
    ],
)
def test_invalid_options_exit_with_code_2(qpeft_cli, base_folder, options, message):
    shown = qpeft_cli("plan", "--model", base_folder, *options)
    assert shown.exit_code == 2, shown.output
    assert message in " ".join(shown.output.replace("│", " ").split())
