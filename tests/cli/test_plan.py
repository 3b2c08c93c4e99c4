"""`qpeft plan`: counts that a run then has; the adapter that the evidence suggests for a budget."""

import json
from dataclasses import asdict

import pytest

import qpeft
from qpeft.methods import suggest as suggest_module
from qpeft.methods.evidence import Design, Evidence
from qpeft_lab.cli.method import method_settings
from qpeft_lab.settings import RunSettings
from qpeft_lab.training.run_folder import RunFolder


def test_options_are_passed_to_the_config(answer, base_folder):
    arguments = "--r 4 --budget 0.5 --hidden 6,5 --target-modules q_proj,v_proj"
    config = qpeft.QPAConfig(
        r=4, budget=0.5, hidden=(6, 5), target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    expected = json.loads(json.dumps(asdict(qpeft.plan(base_folder, config))))

    assert answer(f"plan --model {base_folder} {arguments}") == {
        "model": str(base_folder),
        **expected,
    }


def test_preset_sets_the_options_of_its_method():
    run = RunSettings(model="m", data="d", out="o", method="qpa")
    official = method_settings(run, {"preset": "official", "r": 8, "n_layers": 2})
    assert official["feature_map"] == "squash"
    assert official["chunk_size"] == 2048
    assert official["r"] == 8
    assert official["n_layers"] == 2


def test_plan_forecasts_the_circuits_and_shots_of_train(answer, base_folder, text, tmp_path):
    circuits = "--r 2 --hidden 6,5 --chunk-size 64 --n-layers 2 --shots 1000 --steps 3"
    forecast = answer(f"plan --model {base_folder} {circuits}")["circuits"]
    data = f"--data {text} --seq-len 32 --batch-size 2 --out {tmp_path}/run"
    used = answer(f"train --model {base_folder} {data} {circuits}")["circuits"]
    assert used["circuits"] == forecast["circuits"] == 3 * forecast["circuits_per_step"]
    assert used["shots"] == forecast["shots"] == 1000 * used["circuits"]


FRAMED = {"frame": "gradient", "share": "type", "n_layers": 1, "frame_rank": 4, "r": 2}
RANDOM = {"frame": "random", "share": "type", "n_layers": 1, "r": 2}


@pytest.fixture
def use(monkeypatch):
    """Evidence with these adapters alone, the best first."""

    def replace(*adapters):
        setup = {"base": "b", "base_parameters": 10, "data": "d", "steps": 1, "seeds": 2}
        designs = []
        for number, (method, settings) in enumerate(adapters):
            row = {
                **setup,
                "trainable": 9,
                "loss": 3.5,
                "low": 3.4,
                "high": 3.6,
                "share": 0.5 - 0.1 * number,
            }
            rates = {"": 0.01, "b": 0.01}
            designs.append(
                Design(f"adapter {number}", method, settings, 10**6, None, [], rates, None, [row])
            )
        monkeypatch.setattr(
            suggest_module, "read_evidence", lambda: Evidence("r", designs, {}, {}, "")
        )

    return replace


def test_plan_and_train_take_the_suggested_adapter(
    qpeft_cli, answer, base_folder, text, tmp_path, use
):
    use(("ia3", {}), ("quantum_peft", RANDOM), ("uni_lora", {"r": 4, "theta_d_length": 20}))
    expected = qpeft.suggest(base_folder, parameters=250)
    assert expected.label == "adapter 0"
    assert len(expected.alternatives) == 2

    answered = answer(f"plan --model {base_folder} --parameters 250")
    shown = json.loads(json.dumps({**asdict(expected), "learning_rate": 0.01}))
    # there are notes on servers as well
    assert {**answered["suggestion"], "notes": []} == {
        **shown,
        "notes": [],
    }
    assert answered["trainable"] == expected.plan.trainable
    assert answered["stored_bytes"] == expected.plan.stored_bytes

    for option in ("--mixed-batches", "--server vllm"):
        other = answer(f"plan --model {base_folder} --parameters 250 {option}")["suggestion"]
        assert other["label"] == "adapter 1"
    assert (
        "bytes 8 is too small" in qpeft_cli(f"plan --model {base_folder} --bytes 8", code=2).stderr
    )

    train = f"train --model {base_folder} --data {text} --method auto --parameters 20"
    train += f" --steps 2 --seq-len 16 --batch-size 2 --out {tmp_path}/run"
    assert answer(train)["trainable"] == 20

    settings = RunFolder(tmp_path / "run").recorded()[0]
    assert settings.method == "uni_lora"
    assert settings.lr == 0.01
    assert answer(train)["already_finished"]


def test_adapter_with_a_frame_file_is_trained_with_that_file(
    qpeft_cli, answer, base_folder, text, tmp_path, monkeypatch, use
):
    use(("quantum_peft", FRAMED | {"bits": 16, "lambda_bits": 16}))
    plan = answer(f"plan --model {base_folder} --bytes 1000")
    assert plan["stored_bytes"] == 2 * plan["trainable"]

    train = f"train --model {base_folder} --data {text} --seq-len 16 --batch-size 2"
    train += f" --method auto --bytes 1000 --steps 2 --out {tmp_path}/run"
    refused = qpeft_cli(train, code=2)
    message = " ".join(refused.stderr.split())
    command = message.partition("write one, qpeft ")[2].partition(", and add")[0]
    monkeypatch.chdir(tmp_path)
    answer(command)
    answered = answer(f"{train} --frames {tmp_path}/frames.safetensors")

    assert plan["stored_bytes"] < answered["stored_bytes"] < plan["stored_bytes"] + 200


@pytest.mark.parametrize(
    "method, settings",
    [
        (
            "quantum_peft",
            {"frame": "random", "freeze_angles": True, "r": 2, "modules_to_save": ["norm"]},
        ),
        ("lora", {"r": 1, "target_modules": ["lm_head"]}),
        ("lora", {"r": 1, "target_modules": r".*(mlp\.down_proj|fc2)"}),
        ("tiny_lora", {"r": 2, "u": 2, "save_projection": False}),
    ],
    ids=str,
)
def test_shown_options_are_those_of_the_suggested_adapter(
    qpeft_cli, answer, base_folder, use, method, settings
):
    use((method, settings))
    budget = f"plan --model {base_folder} --parameters 100000"
    suggested = answer(budget)
    (line,) = [
        line for line in qpeft_cli(budget).stdout.splitlines() if line.startswith("--method")
    ]
    options, _, rate = line.partition(" --lr ")

    assert rate == "0.01"

    del suggested["suggestion"]
    assert answer(f"plan --model {base_folder} {options}") == suggested


def test_setting_without_effect_is_noted(qpeft_cli, base_folder):
    """The warning of a config, whose caller is a file that Python makes for dataclasses."""
    shown = qpeft_cli(f"plan --model {base_folder} --method qpa --activation identity", code=0)
    note = "Note: activation='identity' has no effect without hidden layers"
    assert shown.stderr.count(note) == 1
