"""Classification of texts and images with train, evaluate, export, plan and generate."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from tiny_models import make_vit
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of libraries about tiny models


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "reviews.tsv"
    rows = [f"{'so ' * (i % 4)}{('dull', 'fine')[i % 2]}\t{('bad', 'good')[i % 2]}\n" for i in range(60)]
    file.write_text("".join(["text\tlabel\n", *rows]))
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
    return make_vit(tmp_path_factory.mktemp("vit"), num_hidden_layers=1, num_channels=1, num_labels=5)


@pytest.fixture(scope="module")
def runs(answer, base_folder, vit_folder, texts, images, tmp_path_factory):
    """The folder of a finished run of each task."""
    folder = tmp_path_factory.mktemp("runs")
    few = ["--steps", "6", "--r", "2", "--hidden", "6,5", "--chunk-size", "32", "--lr", "1e-2"]
    made = {}
    for name, model, data in (("text", base_folder, texts), ("image", vit_folder, images)):
        task = ["--task", f"{name}-classification", "--model", model, "--data", data]
        answer("train", *task, *few, "--out", folder / name)
        made[name] = folder / name
    return made


@pytest.mark.parametrize(("name", "data"), [("text", "texts"), ("image", "images")])
def test_evaluate_reads_task_and_classes_from_the_run(answer, runs, request, name, data):
    source, scores = ("--data", request.getfixturevalue(data)), []
    for adapter in (".", "adapter", "exported"):
        found = answer("evaluate", "--adapter", runs[name] / adapter, *source)
        assert found["base"] is None  # it has no head for these classes
        scores.append(found["adapted"])
    assert scores[0]["n_scored"] == 60
    assert scores[0]["accuracy_low"] <= scores[0]["accuracy"] <= scores[0]["accuracy_high"]
    assert [score["accuracy"] for score in scores] == [scores[0]["accuracy"]] * 3


@pytest.mark.parametrize(("task", "n_outputs"), [("mrpc", 2), ("stsb", 1)])
def test_reported_scores_are_those_of_scikit_learn_and_scipy(answer, base_folder, tmp_path, task, n_outputs):
    pairs = [("so " * (i % 4), ("dull", "fine")[i % 2] + " so" * (i % 3)) for i in range(48)]
    labels = [(i + (i % 5 == 0)) % 2 if task == "mrpc" else i % 2 * 2 + i % 3 / 4 for i in range(48)]
    columns = ("sentence1", "sentence2", "label")
    rows = [dict(zip(columns, (*pair, label), strict=True)) for pair, label in zip(pairs, labels, strict=True)]
    data, out = f"glue/{task}:{tmp_path / 'rows.json'}", tmp_path / "run"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    few = ["--steps", 12, "--batch-size", 8, "--method", "lora", "--r", 2, "--lr", "1e-2"]
    answer("train", "--model", base_folder, "--data", data, *few, "--out", out)
    found = answer("evaluate", "--adapter", out, "--data", data)["adapted"]

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


def test_evaluate_refuses_another_task_and_unknown_classes(qpeft_cli, runs, texts, tmp_path):
    (tmp_path / "new.tsv").write_text("text\tlabel\nso so\tmixed\n")
    other = ("--data", texts, "--task", "image-classification")
    for options, named in ((other, "image-classification"), (("--data", tmp_path / "new.tsv"), "'mixed'")):
        refused = qpeft_cli("evaluate", "--adapter", runs["text"], *options)
        assert refused.exit_code == 2
        assert named in refused.stderr


@pytest.mark.long
def test_export_has_the_same_accuracy(answer, runs, texts, tmp_path):
    folder = runs["text"]
    trained = answer("evaluate", "--adapter", folder, "--data", texts)["adapted"]
    answer("export", folder, "--out", tmp_path / "exported")
    again = answer("evaluate", "--adapter", tmp_path / "exported", "--data", texts)
    assert again["adapted"]["loss"] == pytest.approx(trained["loss"], rel=1e-5)


@pytest.mark.long
def test_merged_classifier_has_the_same_accuracy(answer, runs, images, tmp_path):
    folder = runs["image"]
    trained = answer("evaluate", "--adapter", folder, "--data", images)["adapted"]
    answer("export", folder, "--out", tmp_path / "merged", "--merge")
    whole = answer("evaluate", "--task", "image-classification", "--model", tmp_path / "merged", "--data", images)
    assert whole["base"]["loss"] == pytest.approx(trained["loss"], rel=1e-5)


def test_generate_refuses_the_adapter_of_a_classification(qpeft_cli, runs):
    for folder in (runs["text"], runs["image"] / "exported"):
        assert qpeft_cli("generate", "--adapter", folder, "--prompt", "so").exit_code == 2


def test_plan_counts_the_head_as_train_does(answer, runs, base_folder, vit_folder):
    def planned(kind, model, *options):
        return answer("plan", "--task", kind, "--model", model, *options)

    few = ("--r", 2, "--hidden", "6,5", "--chunk-size", 32, "--num-labels", 2)
    for name, model in (("text", base_folder), ("image", vit_folder)):
        found = planned(f"{name}-classification", model, *few)
        result = json.loads((runs[name] / "result.json").read_text())
        assert (found["trainable"], found["deployed"]) == (result["trainable"], result["deployed"])
    head = ("--method", "head")
    of_images = planned("image-classification", vit_folder, *head)
    assert of_images["trainable"] == 16 * 5 + 5  # as many classes as the base has
    assert planned("image-classification", vit_folder, *head, "--num-labels", 3)["trainable"] == 16 * 3 + 3
    assert planned("text-regression", base_folder, *head)["trainable"] == 16


def test_base_of_another_kind_is_refused(qpeft_cli, base_folder, images, tmp_path):
    task = ["--task", "image-classification", "--model", base_folder]
    for command in (["train", "--data", images, "--out", tmp_path / "run"], ["plan"]):
        assert qpeft_cli(*command, *task).exit_code == 2
    assert not (tmp_path / "run").exists()
