"""Classification of texts and images with train, evaluate, export, plan and generate."""

import json
import shutil

import pytest
from folders import edit_json
from image_files import bars
from tiny_models import make_vit, opinions, write_tsv

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of libraries about tiny models


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_tsv(tmp_path_factory.mktemp("texts") / "reviews.tsv", opinions(60))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return bars(tmp_path_factory.mktemp("images") / "bars.parquet", 60)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    return make_vit(
        tmp_path_factory.mktemp("vit"), num_hidden_layers=1, num_channels=1, num_labels=5
    )


@pytest.fixture(scope="module")
def runs(answer, base_folder, vit_folder, texts, images, tmp_path_factory):
    """The folder of a finished run of each task."""
    folder = tmp_path_factory.mktemp("runs")
    few = "--steps 6 --r 2 --hidden 6,5 --chunk-size 32 --lr 1e-2"
    made = {}
    for name, model, data in (("text", base_folder, texts), ("image", vit_folder, images)):
        task = f"--task {name}-classification --model {model} --data {data}"
        answer(f"train {task} {few} --out {folder}/{name}")
        made[name] = folder / name
    return made


@pytest.mark.parametrize("name, data", [("text", "texts"), ("image", "images")])
def test_evaluate_reads_task_and_classes_from_the_run(answer, runs, request, name, data):
    source = request.getfixturevalue(data)
    scores = []
    for adapter in (".", "adapter", "exported"):
        answered = answer(f"evaluate --adapter {runs[name]}/{adapter} --data {source}")
        assert answered["base"] is None  # it has no head for these classes
        scores.append(answered["adapted"])

    assert scores[0]["n_scored"] == 60
    assert scores[0]["accuracy_low"] <= scores[0]["accuracy"] <= scores[0]["accuracy_high"]
    assert [score["accuracy"] for score in scores] == [scores[0]["accuracy"]] * 3


def test_other_tasks_and_unknown_classes_are_refused(qpeft_cli, runs, texts, tmp_path):
    (tmp_path / "new.tsv").write_text("text\tlabel\nso so\tmixed\n")
    for command, options, named in (
        ("evaluate", f"--data {texts} --task image-classification", "image-classification"),
        ("evaluate", f"--data {tmp_path}/new.tsv", "'mixed'"),
        ("generate", "--prompt so", "text/adapter"),
    ):
        assert named in qpeft_cli(f"{command} --adapter {runs['text']} {options}", code=2).stderr


def test_classes_that_were_edited_are_refused(qpeft_cli, runs, texts, tmp_path):
    """Two names exchanged gave an accuracy of 0 for one of 1, without a word."""
    shutil.copytree(runs["text"] / "adapter", tmp_path / "adapter")
    evaluate = f"evaluate --adapter {tmp_path}/adapter --data {texts}"
    qpeft_cli(evaluate, code=0)
    edit_json(tmp_path / "adapter" / "task.json", labels=["positive", "negative"])
    assert "it was edited, or belongs to other weights" in qpeft_cli(evaluate, code=2).stderr


@pytest.mark.long
def test_merged_classifier_has_the_same_accuracy(answer, runs, images, tmp_path):
    folder = runs["image"]
    trained = answer(f"evaluate --adapter {folder} --data {images}")["adapted"]
    answer(f"export {folder} --out {tmp_path}/merged --merge")
    whole = answer(
        (f"evaluate --task image-classification --model {tmp_path}/merged --data {images}"),
    )

    assert whole["base"]["loss"] == pytest.approx(trained["loss"], rel=1e-5)


def test_plan_counts_the_head_with_the_classes_of_the_base(answer, runs, base_folder, vit_folder):
    def planned(kind, model, options):
        return answer(f"plan --task {kind} --model {model} {options}")

    answered = planned("text-classification", base_folder, "--r 2 --hidden 6,5 --chunk-size 32")
    result = json.loads((runs["text"] / "result.json").read_text())

    assert answered["trainable"] == result["trainable"]
    assert answered["deployed"] == result["deployed"]

    of_images = planned("image-classification", vit_folder, "--method head")
    assert of_images["trainable"] == 16 * 5 + 5
    assert planned("text-regression", base_folder, "--method head")["trainable"] == 16
