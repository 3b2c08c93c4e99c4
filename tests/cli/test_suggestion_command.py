"""--parameters and --bytes of `plan` and `train`: the adapter that the evidence suggests."""

import json
import shlex

import pytest

import qpeft
from qpeft.compare import suggest as suggest_module
from qpeft.compare.evidence import Design, Evidence, Result, Setup
from qpeft.training.run_folder import RunFolder


def test_plan_is_that_of_the_suggested_adapter(qpeft_cli, base_folder):
    result = qpeft_cli("plan", "--model", base_folder, "--parameters", "300", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = qpeft.suggest(base_folder, parameters=300)
    assert found["suggestion"] == json.loads(json.dumps(expected.to_dict()))
    assert {name: found[name] for name in ("trainable", "stored_bytes")} == {
        "trainable": expected.plan.trainable,
        "stored_bytes": expected.plan.stored_bytes,
    }
    shown = qpeft_cli("plan", "--model", base_folder, "--method", "auto", "--parameters", "300")
    assert shown.exit_code == 0, shown.output
    assert expected.label in shown.stdout
    assert all(f"{one.loss:.3f} [{one.low:.3f}, {one.high:.3f}]" in shown.stdout for one in expected.evidence)


def test_train_takes_the_suggested_adapter_and_its_learning_rate(qpeft_cli, base_folder, tmp_path):
    text_file = tmp_path / "text.txt"
    text_file.write_text("The king went into the wood, and the golden bird sang. " * 40)
    common = ("train", "--model", base_folder, "--data", text_file, "--method", "auto", "--parameters", "40")
    common += ("--steps", "2", "--seq-len", "16", "--batch-size", "2", "--json")
    expected = qpeft.suggest(base_folder, parameters=40)
    result = qpeft_cli(*common, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["trainable"] == expected.plan.trainable <= 40
    settings = RunFolder(tmp_path / "run").settings()
    assert (settings.method, settings.lr) == (expected.method, expected.learning_rate)
    again = qpeft_cli(*common, "--out", tmp_path / "run")
    assert json.loads(again.stdout)["already_finished"]


def test_adapter_with_a_frame_file_is_trained_with_that_file(qpeft_cli, base_folder, tmp_path, monkeypatch):
    settings = {"frame": "gradient", "share": "type", "n_layers": 1, "frame_rank": 4, "r": 2, "bits": 16}
    settings |= {"lambda_bits": 16, "store_frames": False}
    use_only(monkeypatch, "quantum_peft", settings)
    data = text_options(base_folder, tmp_path)
    budget = ("--method", "auto", "--bytes", "1000", "--steps", "2", "--out", tmp_path / "run")
    planned = qpeft_cli("plan", "--model", base_folder, "--bytes", "1000", "--json")
    stored = json.loads(planned.stdout)["stored_bytes"]
    assert stored == 2 * json.loads(planned.stdout)["trainable"]
    refused = qpeft_cli("train", *data, *budget)
    assert refused.exit_code == 2
    message = " ".join(refused.stderr.split())
    command = shlex.split(message.partition("write one, qpeft ")[2].partition(", and add")[0])
    monkeypatch.chdir(tmp_path)
    made = qpeft_cli(*command)
    assert made.exit_code == 0, made.output
    result = qpeft_cli("train", *data, *budget, "--frames", tmp_path / "frames.safetensors", "--json")
    assert result.exit_code == 0, result.output
    assert stored < json.loads(result.stdout)["stored_bytes"] < stored + 200


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("quantum_peft", {"frame": "gradient", "share": "type", "r": 2, "target_modules": "@linear-and-head"}),
        ("quantum_peft", {"frame": "random", "freeze_angles": True, "r": 2, "modules_to_save": "@norms"}),
        ("uni_lora", {"r": 4, "theta_d_length": 64}),
        ("lora", {"r": 1, "lora_alpha": 1, "target_modules": None}),
        ("tiny_lora", {"r": 2, "u": 2, "save_projection": False}),
    ],
    ids=str,
)
def test_shown_options_are_those_of_the_suggested_adapter(qpeft_cli, base_folder, monkeypatch, method, settings):
    use_only(monkeypatch, method, settings)
    budget = ("plan", "--model", base_folder, "--parameters", "100000")
    suggested = json.loads(qpeft_cli(*budget, "--json").stdout)
    shown = qpeft_cli(*budget).stdout.splitlines()
    (line,) = [line for line in shown if line.startswith("--method")]
    words = shlex.split(line)
    assert words[-2:] == ["--lr", "0.01"]
    again = qpeft_cli("plan", "--model", base_folder, *words[:-2], "--json")
    assert again.exit_code == 0, again.output
    del suggested["suggestion"]
    assert json.loads(again.stdout) == suggested


def test_choice_is_shown_before_the_first_step(qpeft_cli, base_folder, tmp_path, monkeypatch):
    use_only(monkeypatch, "lora", {"r": 1, "target_modules": ["lm_head"]})
    monkeypatch.setattr("qpeft.training.train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    asked = ("train", *text_options(base_folder, tmp_path), "--parameters", "9999", "--out", tmp_path / "run")
    result = qpeft_cli(*asked)
    assert result.exit_code == 130
    assert "Suggested: the best: --method lora --r 1 --target-modules lm_head --lr 0.01\n" in result.stderr
    assert "--target-modules lm_head --lr 0.5\n" in qpeft_cli(*asked, "--lr", "0.5").stderr
    assert "Note: TRL's vLLM sync does not load its export" in result.stderr


def use_only(monkeypatch, method, settings):
    """Evidence with one adapter."""
    setup = Setup(base="b", base_parameters=10, data="d", steps=1, untrained=4.0, untrained_valid=4.0, reference=3.0)
    results = [Result(trainable=9, lr=0.01, losses={0: 3.5}, tuning={0.01: 3.5, 0.03: 3.5})]
    only = Design(key="k", label="the best", method=method, settings=settings, results=results)
    evidence = Evidence(study="s", made_by="m", reference="r", setups=[setup], designs=[only])
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: evidence)


def text_options(base_folder, folder):
    (folder / "text.txt").write_text("The king went into the wood, and the golden bird sang. " * 40)
    return ("--model", base_folder, "--data", folder / "text.txt", "--seq-len", "16", "--batch-size", "2")


def test_suggested_adapter_in_gradient_frames_takes_a_frame_file(qpeft_cli, base_folder, tmp_path, monkeypatch):
    use_only(monkeypatch, "quantum_peft", {"frame": "gradient", "share": "type", "n_layers": 1, "r": 2})
    data, file = text_options(base_folder, tmp_path), tmp_path / "frames.safetensors"
    made = qpeft_cli("frames", *data, "--share", "type", "--n-layers", "1", "--out", file, "--json")
    assert made.exit_code == 0, made.output
    chosen = ("--method", "auto", "--parameters", "300", "--frames", file, "--json")
    planned = qpeft_cli("plan", "--model", base_folder, *chosen)
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert plan["stored_bytes"] == 4 * plan["trainable"]  # without frames
    trained = qpeft_cli("train", *data, *chosen, "--steps", "2", "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    found = json.loads(trained.stdout)
    assert found["trainable"] == plan["trainable"]
    assert plan["stored_bytes"] < found["stored_bytes"] < plan["stored_bytes"] + 200
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["frames_sha256"] == json.loads(made.stdout)["sha256"]


@pytest.mark.parametrize("command", ["plan", "train"])
def test_frame_file_for_an_adapter_without_gradient_frames_is_refused(
    command, qpeft_cli, base_folder, tmp_path, monkeypatch
):
    use_only(monkeypatch, "quantum_peft", {"frame": "weights", "r": 2})
    data, file = text_options(base_folder, tmp_path), tmp_path / "frames.safetensors"
    assert qpeft_cli("frames", *data, "--out", file).exit_code == 0
    given = ("--model", base_folder) if command == "plan" else (*data, "--out", tmp_path / "run")
    refused = qpeft_cli(command, *given, "--parameters", "3000", "--frames", file)
    assert refused.exit_code == 2, refused.output
    message = " ".join(refused.stderr.split())
    assert "the first reason is: the best: it has no gradient frames and takes no frame file" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan --method auto", "method auto needs a budget: --parameters N or --bytes N"),
        ("plan --mixed-batches", "--mixed-batches is for the choice of a method: add --parameters N or --bytes N"),
        ("plan --stock-servers", "--stock-servers is for the choice of a method: add --parameters N or --bytes N"),
        ("plan --parameters 99 --bytes 99", "give one budget, --parameters or --bytes"),
        ("plan --parameters 0", "--parameters must be an integer of at least 1, got 0"),
        ("plan --parameters 99 --method lora", "use --method auto instead of --method lora"),
        ("plan --parameters 99 --r 4 --share type", "leave out --r, --share"),
        ("plan --parameters 99 --task text-classification", "evidence for task causal-lm only, not for"),
        ("plan --bytes 8", "--bytes 8 is too small: the smallest measured adapter for this model, "),
        ("plan --bytes 9999 --frames some.safetensors", "there is no frame file"),
        ("train --data none.txt --out run --parameters 99 --frames some.safetensors", "there is no frame file"),
        ("train --data none.txt --out run --method auto", "method auto needs a budget"),
    ],
)
def test_invalid_budget_is_refused(qpeft_cli, base_folder, arguments, message):
    command, *others = arguments.split()
    result = qpeft_cli(command, "--model", base_folder, *others)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
