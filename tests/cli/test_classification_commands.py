"""Classification of texts and images with train, evaluate, export, plan and generate."""

import json
import re

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of libraries about tiny models


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "reviews.tsv"
    rows = [f"{'so ' * (i % 4)}{('dull', 'fine')[i % 2]}\t{('bad', 'good')[i % 2]}\n" for i in range(60)]
    file.write_text("".join(rows))
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = draw.integers(0, 60, (60, 8, 8), dtype=np.uint8) + 150 * labels[:, None, None].astype(np.uint8)
    file = tmp_path_factory.mktemp("images") / "shades.npz"
    np.savez(file, images=pixels, labels=labels, names=np.array(["dark", "light"]))
    return file


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**shape, image_size=8, patch_size=4, num_channels=1, num_labels=5)
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(qpeft_cli, base_folder, vit_folder, texts, images, tmp_path_factory):
    """A finished run of each task, with what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    few = ["--steps", "6", "--r", "2", "--hidden", "6,5", "--chunk-size", "32", "--lr", "1e-2"]
    made = {}
    for name, model, data in (("text", base_folder, texts), ("image", vit_folder, images)):
        task = ["--task", f"{name}-classification", "--model", model, "--data", data]
        result = qpeft_cli("train", *task, *few, "--out", folder / name)
        assert result.exit_code == 0, result.stderr
        made[name] = (folder / name, result)
    return made


@pytest.mark.parametrize("name", ["text", "image"])
def test_train_prints_accuracy(runs, name):
    _, result = runs[name]
    assert re.search(r"accuracy before +\d+\.\d% \(\d+\.\d% to \d+\.\d%\) +\d\.\d{4} nats per example", result.stdout)
    assert "accuracy after" in result.stdout
    assert "perplexity" not in result.stdout + result.stderr
    assert "in the classification head" in " ".join(result.stdout.split())
    assert re.search(r"qpa, step 6: accuracy \d+", result.stderr)


def test_train_notes_a_base_without_an_image_processor(runs):
    assert "Note: the base model has no preprocessor_config.json" in runs["image"][1].stderr


def test_train_json_has_counts_and_interval(qpeft_cli, base_folder, texts, tmp_path):
    result = qpeft_cli(
        *("train", "--task", "text-classification", "--model", base_folder, "--data", texts, "--json"),
        *("--method", "head", "--steps", 2, "--out", tmp_path / "run"),
    )
    found = json.loads(result.stdout)
    assert found["task"] == "text-classification"
    assert found["trainable"] == found["trainable_head"] == found["deployed"] == 32
    assert found["after"]["accuracy_low"] <= found["after"]["accuracy"] <= found["after"]["accuracy_high"]
    assert found["after"]["n_examples"] == 2


@pytest.mark.parametrize(("name", "data"), [("text", "texts"), ("image", "images")])
def test_evaluate_reads_task_and_classes_from_the_run(qpeft_cli, runs, request, name, data):
    folder, source = runs[name][0], request.getfixturevalue(data)
    result = qpeft_cli("evaluate", "--adapter", folder, "--data", source)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"adapted +\d+\.\d% \(\d+\.\d% to \d+\.\d%\)", result.stdout)
    assert "The base has no head for these classes" in " ".join(result.stdout.split())
    assert "60 examples" in result.stdout
    for adapter in ("adapter", "exported"):
        task = f"{name}-classification"
        same = qpeft_cli("evaluate", "--task", task, "--adapter", folder / adapter, "--data", source, "--json")
        found = json.loads(same.stdout)
        assert found["base"] is None
        assert f"{found['adapted']['accuracy']:.1%}" in result.stdout


@pytest.mark.parametrize(("task", "n_outputs"), [("mrpc", 2), ("stsb", 1)])
def test_reported_scores_are_those_of_scikit_learn_and_scipy(qpeft_cli, base_folder, tmp_path, task, n_outputs):
    pairs = [("so " * (i % 4), ("dull", "fine")[i % 2] + " so" * (i % 3)) for i in range(48)]
    labels = [(i + (i % 5 == 0)) % 2 if task == "mrpc" else i % 2 * 2 + i % 3 / 4 for i in range(48)]
    columns = ("sentence1", "sentence2", "label")
    rows = [dict(zip(columns, (*pair, label), strict=True)) for pair, label in zip(pairs, labels, strict=True)]
    data, out = f"glue/{task}:{tmp_path / 'rows.json'}", tmp_path / "run"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    few = ["--steps", 12, "--batch-size", 8, "--method", "lora", "--r", 2, "--lr", "1e-2"]
    done = qpeft_cli("train", "--model", base_folder, "--data", data, *few, "--out", out)
    assert done.exit_code == 0, done.stderr
    found = json.loads(qpeft_cli("evaluate", "--adapter", out, "--data", data, "--json").stdout)["adapted"]

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=n_outputs, pad_token_id=0)
    model = PeftModel.from_pretrained(base, out / "exported").eval()
    with torch.no_grad():
        logits = [model(torch.tensor([tokenizer(*pair)["input_ids"]])).logits[0] for pair in pairs]
    if task == "mrpc":
        predicted = [int(one.argmax()) for one in logits]
        assert 0 < found["f1"] < 1
        assert found["accuracy"] == accuracy_score(labels, predicted)
        assert found["f1"] == f1_score(labels, predicted)
        assert found["mcc"] == matthews_corrcoef(labels, predicted)
    else:
        numbers = [one.item() for one in logits]
        assert found["pearson"] == pytest.approx(pearsonr(labels, numbers).statistic, abs=1e-5)
        assert found["spearman"] == pytest.approx(spearmanr(labels, numbers).statistic, abs=1e-3)
        assert found["loss"] == pytest.approx(mean_squared_error(labels, numbers), rel=1e-4)


def test_evaluate_refuses_another_task_and_unknown_classes(qpeft_cli, runs, images, tmp_path):
    folder = runs["text"][0]
    other = qpeft_cli("evaluate", "--task", "image-classification", "--adapter", folder, "--data", images)
    assert other.exit_code == 2
    assert "was trained for task text-classification, not image-classification" in other.stderr
    (tmp_path / "new.tsv").write_text("so so\tmixed\n")
    unknown = qpeft_cli("evaluate", "--adapter", folder, "--data", tmp_path / "new.tsv")
    assert unknown.exit_code == 2
    assert "has the label 'mixed', not one of the 2 trained classes (bad, good)" in unknown.stderr
    padded = qpeft_cli("evaluate", "--adapter", folder, "--data", tmp_path / "new.tsv", "--padded-perplexity")
    assert padded.exit_code == 2


def test_evaluate_without_classes_names_what_is_missing(qpeft_cli, base_folder, adapter_folder, texts):
    task = ["evaluate", "--task", "text-classification", "--data", texts]
    headless = qpeft_cli(*task, "--model", base_folder)
    assert headless.exit_code == 2
    assert "has no classification head to score; pass --adapter" in headless.stderr
    foreign = qpeft_cli(*task, "--adapter", adapter_folder, "--model", base_folder)
    assert foreign.exit_code == 2
    assert "has no task.json with its classes" in foreign.stderr


@pytest.mark.long
def test_export_has_the_same_accuracy(qpeft_cli, runs, texts, tmp_path):
    folder = runs["text"][0]
    trained = json.loads(qpeft_cli("evaluate", "--adapter", folder, "--data", texts, "--json").stdout)["adapted"]
    exported = qpeft_cli("export", folder, "--out", tmp_path / "exported")
    assert exported.exit_code == 0, exported.stderr
    assert "AutoModelForSequenceClassification" in exported.stdout
    assert "num_labels=2, pad_token_id=0)" in exported.stdout
    again = json.loads(qpeft_cli("evaluate", "--adapter", tmp_path / "exported", "--data", texts, "--json").stdout)
    assert again["adapted"]["nats"] == pytest.approx(trained["nats"], rel=1e-5)


@pytest.mark.long
def test_merged_classifier_has_the_same_accuracy(qpeft_cli, runs, images, tmp_path):
    folder = runs["image"][0]
    trained = json.loads(qpeft_cli("evaluate", "--adapter", folder, "--data", images, "--json").stdout)["adapted"]
    merged = qpeft_cli("export", folder, "--out", tmp_path / "merged", "--merge")
    assert merged.exit_code == 0, merged.stderr
    task = ["--task", "image-classification", "--model", tmp_path / "merged"]
    whole = qpeft_cli("evaluate", *task, "--data", images, "--json")
    assert "converted to" not in whole.stderr  # the image processor is saved with the weights
    assert json.loads(whole.stdout)["base"]["nats"] == pytest.approx(trained["nats"], rel=1e-5)


def test_generate_refuses_the_adapter_of_a_classification(qpeft_cli, runs):
    for folder in (runs["text"][0], runs["image"][0] / "exported"):
        result = qpeft_cli("generate", "--adapter", folder, "--prompt", "so")
        assert result.exit_code == 2
        assert "is an adapter for labelled data, which generates no text" in result.stderr


def test_plan_equals_the_parameters_of_train(qpeft_cli, runs, base_folder, vit_folder):
    few = ["--r", 2, "--hidden", "6,5", "--chunk-size", 32, "--num-labels", 2]
    for name, model in (("text", base_folder), ("image", vit_folder)):
        planned = qpeft_cli("plan", "--task", f"{name}-classification", "--model", model, *few, "--json")
        result = json.loads((runs[name][0] / "result.json").read_text())
        found = json.loads(planned.stdout)
        assert (found["trainable"], found["deployed"]) == (result["trainable"], result["deployed"])


def test_plan_counts_the_head_alone(qpeft_cli, vit_folder, base_folder):
    task = ["plan", "--task", "image-classification", "--model", vit_folder, "--method", "head", "--json"]
    assert json.loads(qpeft_cli(*task).stdout)["trainable"] == 16 * 5 + 5  # as many classes as the base has
    assert json.loads(qpeft_cli(*task, "--num-labels", 3).stdout)["trainable"] == 16 * 3 + 3
    refused = qpeft_cli("plan", "--model", base_folder, "--num-labels", 3)
    assert refused.exit_code == 2
    assert "task causal-lm has no classes" in refused.stderr
    number = qpeft_cli(*("plan", "--task", "text-regression", "--model", base_folder, "--method", "head", "--json"))
    assert json.loads(number.stdout)["trainable"] == 16


def test_plan_of_a_classifier_without_task_names_the_option(qpeft_cli, vit_folder, tmp_path):
    (tmp_path / "study.yaml").write_text(
        f"{{name: one, title: One, question: Which, base: {vit_folder}, methods: [{{key: lora, method: lora}}]}}"
    )
    for command in (["plan", "--model", vit_folder], ["compare", "plan", tmp_path / "study.yaml"]):
        refused = qpeft_cli(*command)
        assert refused.exit_code == 2, refused.stderr
        assert "is a ViTForImageClassification, which is no language model; set --task" in " ".join(
            refused.stderr.split()
        )


def test_base_of_another_kind_is_refused(qpeft_cli, base_folder, images, tmp_path):
    task = ["--task", "image-classification", "--model", base_folder]
    for command in (["train", "--data", images, "--out", tmp_path / "run"], ["plan"]):
        result = qpeft_cli(*command, *task)
        assert result.exit_code == 2
        assert "a base of type llama cannot be trained for image-classification" in result.stderr
    assert not (tmp_path / "run").exists()
