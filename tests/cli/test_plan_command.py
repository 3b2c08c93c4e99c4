"""`qpeft plan`: the counts of the papers, from the configuration of a base model; counts that a run then has."""

import json
from dataclasses import asdict

import moe
import pytest
from geometries import write_geometry

import qpeft
from qpeft_lab.cli.method import method_settings
from qpeft_lab.settings import RunSettings


@pytest.mark.parametrize(
    ("base", "arguments", "counts"),
    [  # the published log has 106,264; the paper prints 52.06 % and 16.84 % (truncated)
        ("gpt2-small", "--preset official", ["106,264", "204,100", "52.065%"]),
        ("gemma-2b", "--preset official --chunk-size 4096", ["173,888", "1,032,192", "16.846%"]),
        ("gemma-2-2b", "--preset official --chunk-size 4096", ["173,888", "1,033,216", "16.830%"]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_published_counts_are_printed(qpeft_cli, tmp_path, base, arguments, counts):
    write_geometry(base, tmp_path)
    result = qpeft_cli("plan", "--model", tmp_path, *arguments.split())
    assert result.exit_code == 0, result.output
    assert not [count for count in counts if count not in result.stdout]


@pytest.mark.parametrize("budget", ["0.5", "8_000"])
def test_options_are_passed_to_the_config(answer, base_folder, budget):
    arguments = ("--r", 4, "--budget", budget, "--hidden", "6,5", "--target-modules", "q_proj,v_proj")
    config = qpeft.QPAConfig(
        r=4, budget=float(budget), hidden=(6, 5), target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    expected = json.loads(json.dumps(asdict(qpeft.plan(base_folder, config))))
    assert answer("plan", "--model", base_folder, *arguments) == {"model": str(base_folder), **expected}


def test_shared_option_is_passed_to_the_chosen_method(answer, base_folder):
    plan = ("plan", "--model", base_folder, "--method", "quantum_peft", "--r", 3)
    one, default, two = (answer(*plan, *layers)["trainable"] for layers in (("--n-layers", 1), (), ("--n-layers", 2)))
    assert one < default == two


def test_preset_sets_the_options_of_its_method():
    run = RunSettings(model="m", data="d", out="o", method="qpa")
    official = method_settings(run, {"preset": "official", "r": 8, "n_layers": 2})
    assert (official["feature_map"], official["chunk_size"]) == ("squash", 2048)
    assert (official["r"], official["n_layers"]) == (8, 2)


@pytest.mark.parametrize(
    ("options", "trainable"),
    [
        ("--method qaa --ansatz rxyz --n-layers 2", 4 * (24 + 16 * 4 + 16)),
        ("--method qaa --feature-source quadratic --carry-norm", 4 * (16 * 4 + 16)),
        ("--method bottleneck --bottleneck-size 4", 2 * (2 * 16 * 4 + 4 + 16)),
    ],
)
def test_methods_without_a_stock_form_are_counted(answer, base_folder, options, trainable):
    found = answer("plan", "--model", base_folder, *options.split())
    assert (found["trainable"], found["exported_bytes"]) == (trainable, None)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_experts_are_shown_by_their_names_or_refused(qpeft_cli, tmp_path):
    moe.make("mixtral").config.save_pretrained(tmp_path)
    result = qpeft_cli("plan", "--model", tmp_path, "--method", "qpa")
    assert "q_proj, k_proj, v_proj, o_proj, gate, gate_up_proj, down_proj" in " ".join(result.stdout.split())
    assert qpeft_cli("plan", "--model", tmp_path, "--method", "quantum_peft").exit_code == 2


def test_plan_forecasts_the_circuits_and_shots_of_train(answer, base_folder, text, tmp_path):
    circuits = ("--r", 2, "--hidden", "6,5", "--chunk-size", 64, "--n-layers", 2, "--shots", 1000, "--steps", 3)
    forecast = answer("plan", "--model", base_folder, *circuits)["circuits"]
    data = ("--data", text, "--seq-len", 32, "--batch-size", 2, "--out", tmp_path / "run")
    used = answer("train", "--model", base_folder, *data, *circuits)["circuits"]
    assert used["circuits"] == forecast["circuits"] == 3 * forecast["circuits_per_step"]
    assert used["shots"] == forecast["shots"] == 1000 * used["circuits"]
