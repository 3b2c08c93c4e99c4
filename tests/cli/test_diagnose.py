"""`qpeft diagnose` from end to end: a run, an adapter folder, a config, training runs, refusals."""

import json
import shutil

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:QPA trains:UserWarning")

QUESTIONS = ("random", "redundant", "gradients", "expressive", "moved", "rank", "matters")
QUICK = ("--samples", 20)


@pytest.fixture(scope="module")
def run_folder(qpeft_cli, base_folder, tmp_path_factory):
    """A QPA run of four steps."""
    folder = tmp_path_factory.mktemp("diagnose")
    text = folder / "text.txt"
    text.write_text("The king went into the wood, and the golden bird sang of it at night. " * 60)
    paths = ("--model", base_folder, "--data", text, "--out", folder / "run")
    sizes = ("--hidden", "6,5", "--chunk-size", 32, "--steps", 4, "--batch-size", 2, "--seq-len", 32)
    trained = qpeft_cli("train", *paths, *sizes, "--lr", "0.01", "--eval-blocks", 4)
    assert trained.exit_code == 0, trained.output
    return folder / "run"


@pytest.fixture
def diagnosed(qpeft_cli):
    def call(*arguments):
        result = qpeft_cli("diagnose", *arguments, *QUICK, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        return found, {finding["key"]: finding for finding in found["findings"]}

    return call


def test_run_is_diagnosed_with_every_measurement(diagnosed, run_folder):
    found, by_key = diagnosed(run_folder)
    assert tuple(by_key) == QUESTIONS
    assert found["page"] == str(run_folder / "diagnose.html")
    assert (run_folder / "diagnose.html").is_file()
    assert set(by_key["random"]["figures"]) == {"random angles", "start", "trained"}
    angles = by_key["redundant"]["figures"]["angles"]
    n_qubits, n_layers = int(found["facts"]["Qubits"]), int(found["facts"]["Layers"])
    assert angles["n_angles"] == n_qubits * n_layers
    assert angles["rank"] == min(n_qubits * n_layers, 2**n_qubits - 1)
    assert 0 < by_key["moved"]["figures"]["angles"]["mean"] < 1
    updates = by_key["rank"]["figures"]["updates"]["matrices"]
    assert len(updates) == 14
    assert all(matrix["numerical_rank"] <= 8 for matrix in updates)
    assert by_key["matters"]["left_out"][0].endswith(f"qpeft diagnose {run_folder} --trainings")
    for finding in found["findings"]:
        assert finding["sentences"] or finding["left_out"]
    assert found["summary"].count(".") > 3


def test_output_fits_80_columns(qpeft_cli, run_folder):
    result = qpeft_cli("diagnose", run_folder, *QUICK, env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for word in ("1. Is the circuit random?", "7. Does the circuit matter?", "rank of the Jacobian", "Meyer-Wallach"):
        assert word in result.stdout
    named = str(run_folder)
    assert max(len(line) for line in result.stdout.splitlines() if named not in line) <= 80
    assert result.stdout.rstrip().endswith(f"page  {run_folder / 'diagnose.html'}")


def test_adapter_folder_is_not_changed(diagnosed, adapter_folder, tmp_path):
    before = sorted(path.name for path in adapter_folder.iterdir())
    found, by_key = diagnosed(adapter_folder)
    assert found["page"] is None
    assert sorted(path.name for path in adapter_folder.iterdir()) == before
    assert by_key["moved"]["figures"]["angles"]["n_angles"] > 0
    assert "need data" in by_key["matters"]["left_out"][0]
    again, _ = diagnosed(adapter_folder, "--html", tmp_path / "page.html")
    assert again["findings"] == found["findings"], "equal seeds, equal measurements"
    assert "image/svg+xml" in (tmp_path / "page.html").read_text()


def test_config_is_diagnosed_at_its_initial_values(diagnosed, qpeft_cli, base_folder, run_folder):
    sizes = ("--hidden", "6,5", "--chunk-size", 32)
    found, by_key = diagnosed("--model", base_folder, *sizes)
    plan = json.loads(qpeft_cli("plan", "--model", base_folder, *sizes, "--json").stdout)
    assert found["facts"]["Qubits"] == str(plan["n_qubits"])
    assert set(by_key["random"]["figures"]) == {"random angles", "start"}
    assert "nothing is trained yet" in by_key["moved"]["left_out"][0]
    other, _ = diagnosed("--model", base_folder, *sizes, "--set", "n_layers=2")
    assert other["facts"]["Layers"] == "2"
    _, of_run = diagnosed(run_folder)
    assert by_key["random"]["figures"]["start"] == of_run["random"]["figures"]["start"]


def test_quantum_peft_has_the_measurements_that_apply(diagnosed, base_folder, tmp_path):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    import qpeft

    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    config = qpeft.QuantumPeftConfig(r=2, n_layers=1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.requires_grad)
    model.save_pretrained(str(tmp_path / "adapter"))
    found, by_key = diagnosed(tmp_path / "adapter")
    assert "no circuit whose probabilities" in by_key["random"]["left_out"][0]
    assert by_key["moved"]["figures"]["angles"]["mean"] == pytest.approx(0.5, rel=1e-5)
    assert len(by_key["rank"]["figures"]["updates"]["matrices"]) == 14
    assert found["facts"]["Method"] == "quantum_peft"


@pytest.mark.long
def test_training_runs_are_a_comparison_that_resumes(diagnosed, qpeft_cli, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    asked = (run, "--trainings", "--seeds", "0,1", "--steps", 2)
    first = qpeft_cli("diagnose", *asked, *QUICK, "--json")
    assert first.exit_code == 0, first.output
    assert first.stderr.count("seed0: test loss") == 6
    assert first.stderr.count("seed1: test loss") == 5, "the base as it is has no seed"
    _, by_key = diagnosed(*asked)
    runs = by_key["matters"]["figures"]["trainings"]
    assert [m["key"] for m in runs["methods"]] == ["qnn", "qnn_frozen", "free", "random", "no_feature"]
    assert runs["seeds"] == [0, 1]
    assert runs["steps"] == 2
    assert {len(m["metric"]["values"]) for m in runs["methods"]} == {2}
    assert all("Preliminary" in m["sentence"] for m in runs["methods"][1:])
    assert (run / "circuit-matters" / "report.html").is_file()
    assert "Fewer than 3 seeds" in by_key["matters"]["sentences"][0]
    again = qpeft_cli("diagnose", *asked, *QUICK)
    assert "11 of 11 cells are already done" in again.stderr
    _, later = diagnosed(run)
    assert later["matters"]["sentences"] == by_key["matters"]["sentences"], "found before, shown again"
    assert "control" in (run / "diagnose.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a run folder or an adapter folder, or --model"),
        (["{run}", "--model", "x"], "one of them"),
        (["{run}", "--r", 4], "--r: "),
        (["{run}", "--seeds", "1,2"], "only with --trainings"),
        (["{run}", "--samples", 3], "--samples"),
        (["{run}/absent"], "no adapter at"),
        (["{adapter}", "--trainings"], "is not a run folder"),
        (["--model", "{base}", "--trainings"], "--trainings needs data"),
        (["--model", "{base}", "--method", "lora"], "nothing to diagnose before it is trained"),
        (["--model", "{base}", "--method", "lora", "--budget", "0.5"], "an option of QPA, not of method lora"),
        (["{run}", "--html", "{run}"], "is a folder"),
        (["{run}", "--trainings", "--seeds", "1,1"], "duplicate seed"),
    ],
)
def test_bad_target_exits_with_code_2(qpeft_cli, run_folder, adapter_folder, base_folder, arguments, message):
    places = {"run": run_folder, "adapter": adapter_folder, "base": base_folder}
    result = qpeft_cli("diagnose", *(str(argument).format(**places) for argument in arguments), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == found["exit_code"] == 2, found
    assert message in found["message"]
