"""`qpeft plan`: the counts of the papers, from the configuration of a base model."""

import json

import moe
import pytest
from geometries import write_geometry

import qpeft
from qpeft.cli.console import percent
from qpeft.cli.method import method_settings
from qpeft.training.settings import TrainSettings


def planned(qpeft_cli, *arguments):
    result = qpeft_cli("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def gpt2_config(tmp_path_factory):
    """GPT-2's geometry as a config.json, without weights."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_geometry("gpt2-small", folder)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_preset_official_is_the_published_experiment(qpeft_cli, gpt2_config):
    found = planned(qpeft_cli, "--model", gpt2_config, "--preset", "official")
    assert found["trainable"] == 106_264
    assert found["deployed"] == 204_100
    assert (found["n_qubits"], found["n_chunks"], found["chunk_size"]) == (7, 100, 2048)
    assert found["target_modules"] == ["lm_head"]


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


def test_adapter_that_is_not_generated_has_no_share_of_trainable_parameters(qpeft_cli, base_folder):
    result = qpeft_cli("plan", "--model", base_folder, "--method", "lora")
    assert "of these" not in result.stdout


def test_option_overrides_the_preset(qpeft_cli, gpt2_config):
    found = planned(qpeft_cli, "--model", gpt2_config, "--preset", "official", "--chunk-size", 1024)
    assert found["chunk_size"] == 1024
    assert found["trainable"] == 72_512


@pytest.mark.parametrize("budget", ["0.5", "8_000"])
def test_options_are_passed_to_the_config(qpeft_cli, base_folder, budget):
    arguments = ("--r", 4, "--budget", budget, "--hidden", "6,5", "--target-modules", "q_proj,v_proj")
    found = planned(qpeft_cli, "--model", base_folder, *arguments)
    config = qpeft.QPAConfig(
        r=4, budget=float(budget), hidden=(6, 5), target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    assert found == {"model": str(base_folder), **json.loads(json.dumps(qpeft.plan(base_folder, config).to_dict()))}


def test_output_fits_80_columns(qpeft_cli, base_folder):
    result = qpeft_cli("plan", "--model", base_folder, "--hidden", "6,5", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for word in ("trainable", "deployed", "qubits", "rank bound", "modules"):
        assert word in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(base_folder) not in line) <= 80
    assert "\x1b" not in result.stdout


def test_embedded_base(qpeft_cli):
    assert planned(qpeft_cli, "--model", "embedded", "--r", 4)["base_parameters"] == 1_548_672


def test_shared_option_is_passed_to_the_chosen_method(qpeft_cli, base_folder):
    common = ("--model", base_folder, "--method", "quantum_peft", "--r", 3)
    one, default, two, three = (
        planned(qpeft_cli, *common, *layers)["trainable"]
        for layers in (("--n-layers", 1), (), ("--n-layers", 2), ("--n-layers", 3))
    )
    assert one < default == two < three


def test_preset_sets_the_options_of_its_method():
    run = TrainSettings(model="m", data="d", out="o", method="quantum_peft")
    taylor = method_settings(run, "paper_taylor", {}, {"taylor_order": 12})
    assert (taylor["lie_map"], taylor["taylor_order"]) == ("taylor", 12)
    pauli = method_settings(run, "paper_pauli", {"r": 2}, {})
    assert (pauli["r"], pauli["n_layers"], pauli["columns"], pauli["construction"]) == (2, 1, "first", "qsd_full")


def test_stock_method_has_no_circuit(qpeft_cli, base_folder):
    found = planned(qpeft_cli, "--model", base_folder, "--method", "lora")
    assert found["trainable"] == found["deployed"] > 0
    assert found["n_qubits"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0.5", "--chunk-size", "8"], "at most one of --chunk-size and --budget"),
        (["--target-modules", "q_prj"], "q_proj"),
        (["--model", "nowhere/else/at-all"], "nowhere"),
        (["--method", "lora", "--budget", "0.5"], "--budget: an option of QPA, not of method lora"),
        (["--method", "lora", "--n-layers", "2"], "QPA and QAA and Quantum-PEFT, not of"),
        (["--share", "type"], "--share: an option of Quantum-PEFT, not of method qpa; use --method"),
        (["--method", "quantum_peft", "--preset", "official"], "paper_pauli, paper_taylor of method quantum_peft"),
        (["--method", "quantum_peft", "--family", "core"], "set frame= to one of gradient, sign, weights, random"),
        (["--method", "quantum_peft", "--r", "17"], "r=17 exceeds min(d_in, d_out)=16 for model.layers.0"),
        (["--method", "quantum_peft", "--use-rslora"], "--use-rslora rescales by r"),
        (["--method", "lora", "--preset", "official"], "unknown preset 'official' of method lora"),
        (["--method", "ia3", "--r", "4"], "'r'"),
        (["--method", "full"], "name another method"),
        (["--r", "0"], "r must be at least 1, got 0"),
        (["--lora-dropout", "3"], "--lora-dropout must be below 1, got 3"),
        (["--method", "prefix", "--num-virtual-tokens", "0"], "--num-virtual-tokens must be at least 1, got 0"),
        (["--preset", "official", "--num-virtual-tokens", "3"], "'num_virtual_tokens'"),
        (["--set", "lora_bais=none"], "unknown field of method qpa: 'lora_bais'"),
        (["--method", "lora", "--set", "biass=all"], "did you mean 'bias'? Choose one of alora_invocation_tokens"),
        (["--r", "2", "--set", "r=4"], "r is given twice; leave out --set r=4"),
        (["--set", "seed=4"], "replace --set seed=4 by --seed"),
        (["--set", "bias"], "--set takes NAME=VALUE"),
        (["--set", "bias=[1"], "--set takes NAME=VALUE"),
    ],
)
def test_bad_input_exits_with_code_2(qpeft_cli, base_folder, arguments, message):
    result = qpeft_cli("plan", "--model", base_folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.52065, "52.065%"), (0.00028, "0.028%"), (0.0000029, "0.00029%"), (1.0, "100.000%"), (0.0, "0.000%")],
)
def test_small_share_has_two_significant_digits(share, shown):
    assert percent(share) == shown


def test_map_and_network_of_qpa_are_named(qpeft_cli, base_folder):
    linear, paper = (
        planned(qpeft_cli, "--model", base_folder, *preset)["trainable_parts"] for preset in ((), ("--preset", "paper"))
    )
    assert "map" in linear
    assert "network" in paper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lora", "--set", "rank_pattern=3"], "rank_pattern must be a mapping"),
        (["--set", "rank_pattern=3"], "rank_pattern must be a mapping"),
        (["--task", "text-classification", "--num-labels", "99999999999"], "--num-labels"),  # a name for each class
    ],
)
def test_values_that_peft_and_transformers_do_not_check_are_refused(qpeft_cli, base_folder, options, message):
    result = qpeft_cli("plan", "--model", base_folder, *options)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_experts_are_shown_by_their_names_or_refused(qpeft_cli, tmp_path):
    moe.make("mixtral").config.save_pretrained(tmp_path)
    result = qpeft_cli("plan", "--model", tmp_path, "--method", "qpa")
    assert "q_proj, k_proj, v_proj, o_proj, gate, gate_up_proj, down_proj" in " ".join(result.stdout.split())
    refused = qpeft_cli("plan", "--model", tmp_path, "--method", "quantum_peft")
    assert refused.exit_code == 2
    assert "--target-modules without them, such as" in " ".join(refused.stderr.split())
