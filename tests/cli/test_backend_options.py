"""`--backend`, `--shots` and related options of plan and train."""

import json

import pytest

QPA = ("--r", 2, "--hidden", "6,5", "--chunk-size", 64, "--n-layers", 2)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"line {i} of the text that is learned here" for i in range(80)))
    return path


@pytest.fixture
def command(base_folder, text, tmp_path):
    sizes = ("--steps", 3, "--seq-len", 32, "--batch-size", 2)
    return ("train", "--model", base_folder, "--data", text, *QPA, *sizes, "--out", tmp_path / "run")


def test_plan_forecasts_the_circuits_and_shots_of_train(qpeft_cli, base_folder, command):
    planned = qpeft_cli("plan", "--model", base_folder, *QPA, "--shots", 1000, "--steps", 3, "--json")
    assert planned.exit_code == 0, planned.output
    forecast = json.loads(planned.stdout)["circuits"]
    trained = qpeft_cli(*command, "--shots", 1000, "--json")
    assert trained.exit_code == 0, trained.output
    used = json.loads(trained.stdout)["circuits"]
    assert used["circuits"] == forecast["circuits"]
    assert used["shots"] == forecast["shots"] == 1000 * used["circuits"]
    n_angles = 2 * forecast["n_qubits"]
    assert forecast["circuits"] == 3 * (1 + 2 * n_angles)


def test_circuits_are_printed(qpeft_cli, base_folder, command):
    planned = qpeft_cli("plan", "--model", base_folder, *QPA, "--shots", 1000, env={"COLUMNS": "100"})
    for words in ("circuits to run", "gradients by parameter-shift", "measured on"):
        assert words in planned.stdout
    exact = qpeft_cli("plan", "--model", base_folder, *QPA, "--gradient", "parameter-shift")
    assert exact.exit_code == 0, exact.output
    assert "circuits to run" in exact.stdout
    assert "of each circuit" not in exact.stdout  # there are no shots
    assert "circuits to run" not in qpeft_cli("plan", "--model", base_folder, *QPA).stdout
    trained = qpeft_cli(*command, "--shots", 1000, env={"COLUMNS": "200"})
    assert "circuits on exact:" in trained.stderr
    assert " jobs, " in trained.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shots", 1000, "--shot-budget", 1000), "shots, more than the shot budget of 1,000"),
        (("--feature-source", "none", "--shots", 1000), "the model has no circuit that a backend can run"),
        (("--backend", "pennylane:lightening.qubit"), "unknown PennyLane device 'lightening.qubit'; installed: "),
    ],
)
def test_invalid_backend_options_exit_with_code_2(qpeft_cli, command, options, message):
    result = qpeft_cli(*command, *options, env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not command[-1].exists()
