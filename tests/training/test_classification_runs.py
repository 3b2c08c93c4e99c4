"""Complete runs of text and image classification: learned, saved, resumed."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from runs import Killed, assert_same_result, kill_at, losses, weights
from tiny_models import make_vit
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, BertForMaskedLM

from qpeft.errors import CheckpointError
from qpeft.training import TrainSettings, train
from qpeft.training.metrics import evaluate_classifier
from qpeft.training.result import read_result
from qpeft.training.tasks import task_class
from qpeft.training.tasks.classifier import find_head
from qpeft.training.tasks.record import read_record

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:the base model has no weights for bert.pooler"),
    pytest.mark.filterwarnings("ignore:angles move at most"),
]

TASKS = ["text-classification", "image-classification"]
METHODS = {
    "lora": {"r": 2},
    "qpa": {"r": 2, "chunk_size": 32, "hidden": (6, 5)},
    "quantum_peft": {"r": 2, "lora_alpha": 4},
    "head": {},
    "full": {},
}


@pytest.fixture
def settings(tiny_encoder, tiny_vit, opinion_files, bar_files, tmp_path):
    def make(task: str, out: str = "run", **changes) -> TrainSettings:
        model, (data, eval_data) = {
            "text-classification": (tiny_encoder, opinion_files),
            "image-classification": (tiny_vit, bar_files),
        }[task]
        chosen = {"steps": 40, "lr": 1e-2, "batch_size": 16, "eval_every": 20, **changes}
        paths = {"model": str(model), "data": str(data), "eval_data": str(eval_data), "out": str(tmp_path / out)}
        return TrainSettings(**{"task": task, **paths, **chosen})

    return make


def score_of(model, asked: TrainSettings):
    """The run's evaluation data scored by another model."""
    task = task_class(asked.task)(asked)
    return evaluate_classifier(model, task.evaluation, task.collate)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(name, marks=pytest.mark.long) for name in METHODS if name != "lora")]
)
def test_each_method_learns_and_reloads_in_stock_libraries(settings, task, method):
    asked = settings(task, method=method, method_settings=METHODS[method])
    result = train(asked)
    assert result.after.loss < 0.9 * result.before.loss
    n_classes, bias = (2, 2) if task == "text-classification" else (3, 3)
    pooler = 16 * 16 + 16 if task == "text-classification" else 0  # a masked language model has none
    assert result.trainable_head == 16 * n_classes + bias + pooler
    if method == "head":
        assert result.trainable == result.deployed == result.trainable_head
    else:
        assert result.trainable > result.trainable_head
    auto = AutoModelForSequenceClassification if task == "text-classification" else AutoModelForImageClassification
    if method == "full":
        reloaded = auto.from_pretrained(result.exported)
        assert list(reloaded.config.id2label.values()) == list(task_class(task)(asked).labels)
    else:
        options = read_record(result.exported).options()
        reloaded = PeftModel.from_pretrained(auto.from_pretrained(asked.model, **options), result.exported)
    again = score_of(reloaded.eval(), asked)
    assert again.loss == pytest.approx(result.after.loss, abs=1e-5)
    assert again.n_correct == result.after.n_correct


@pytest.mark.filterwarnings("ignore:.*evaluation examples are also training data")
@pytest.mark.long
def test_decoder_learns_a_separable_task(settings, tiny_decoder, tmp_path):
    rows = [f"{'the king ' * (i % 5)}sings {('well', 'night')[i % 2]}\t{i % 2}\n" for i in range(64)]
    (tmp_path / "ends.tsv").write_text("".join(rows))
    data = {"data": str(tmp_path / "ends.tsv"), "eval_data": str(tmp_path / "ends.tsv")}
    chosen = {"method": "lora", "method_settings": {"r": 4}, "lr": 3e-2}
    result = train(settings("text-classification", model=str(tiny_decoder), **data, **chosen))
    assert result.after.loss < 0.9 * result.before.loss
    assert result.trainable_head == 2 * 16  # without a bias
    assert read_record(result.adapter).pad_token_id == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "task"),
    [("qpa", TASKS[0]), ("qpa", TASKS[1]), ("lora", TASKS[0]), ("head", TASKS[1]), ("full", TASKS[1])],
)
def test_killed_run_resumes_to_bit_equal_weights(settings, task, method):
    short = {"steps": 7, "save_every": 2, "eval_every": 3, "batch_size": 5, "gradient_accumulation_steps": 2}
    chosen = {"method": method, "method_settings": METHODS[method], **short}
    unbroken = train(settings(task, "unbroken", **chosen))
    with pytest.raises(Killed):
        train(settings(task, **chosen), kill_at(5))
    resumed = train(settings(task, **chosen))
    assert_same_result(resumed.out, unbroken.out)
    assert resumed.after == unbroken.after


@pytest.mark.long
@pytest.mark.parametrize("base", ["tiny_encoder", "tiny_vit", "tiny_decoder"])
def test_gradient_accumulation_equals_one_batch(settings, request, base):
    """The models' own losses would make the gradient of two halves twice that of the whole."""
    task = "image-classification" if base == "tiny_vit" else "text-classification"
    chosen = {"model": str(request.getfixturevalue(base)), "method": "head", "steps": 3, "eval_every": 3}
    whole = train(settings(task, "whole", batch_size=8, **chosen))
    halves = train(settings(task, "halves", batch_size=4, gradient_accumulation_steps=2, **chosen))
    for ours, theirs in zip(losses(halves.out), losses(whole.out), strict=True):
        for name in {"loss", "grad_norm", "eval_loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.fixture
def tiny_decoder(tiny_model, tmp_path):
    """The tiny GPT-2 without dropout, which would differ between the two ways."""
    folder = shutil.copytree(tiny_model, tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0))
    )
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_head_depends_only_on_the_seed(settings, task):
    def head(seed):
        torch.manual_seed(torch.seed() % 1000)  # whatever was drawn before
        asked = settings(task, seed=seed)
        made = task_class(task)(asked)
        return made.load_base().classifier.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


@pytest.mark.long
def test_existing_head_for_the_same_classes_is_kept_and_trained(settings, tmp_path):
    first = train(settings("image-classification", "first", method="full"))
    asked = settings("image-classification", "second", model=str(first.exported), method="head", steps=2, lr=1e-9)
    second = train(asked)
    assert second.before.loss == pytest.approx(first.after.loss, rel=1e-6)
    assert second.trainable_head == 16 * 3 + 3


def test_head_for_other_classes_is_replaced(settings, tiny_vit, bar_files, tmp_path):
    import numpy as np

    first = train(settings("image-classification", "first", method="full", steps=2))
    content = dict(np.load(bar_files[0]))
    content["names"] = np.array(["x", "y", "z"])
    np.savez(tmp_path / "other.npz", **content)
    asked = settings(
        "image-classification", model=str(first.exported), data=str(tmp_path / "other.npz"), eval_data=None
    )
    task = task_class(asked.task)(asked)
    head = task.load_base().classifier.weight
    assert not torch.equal(head, weights(first.exported)["classifier.weight"])
    assert task.has_new_head


def test_heads_of_other_families_are_found():
    from transformers import (
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        CLIPConfig,
        ConvNextConfig,
        DebertaV2Config,
        DistilBertConfig,
        LlamaConfig,
        RobertaConfig,
    )

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    part = {**small, "image_size": 8, "patch_size": 4}
    texts = [
        (RobertaConfig(vocab_size=9, **small), ["classifier"]),
        (LlamaConfig(vocab_size=9, **small), ["score"]),
        (DebertaV2Config(vocab_size=9, **small), ["pooler", "classifier"]),
        (DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_heads=2), ["pre_classifier", "classifier"]),
    ]
    images = [
        (ConvNextConfig(num_stages=2, hidden_sizes=[4, 8], depths=[1, 1]), ["classifier"]),
        (CLIPConfig(text_config=small, vision_config=part, projection_dim=8), ["classifier"]),
    ]
    with torch.device("meta"):
        for auto, heads in ((AutoModelForSequenceClassification, texts), (AutoModelForImageClassification, images)):
            for config, names in heads:
                found = find_head(auto.from_config(config))
                assert sorted(found) == sorted(names)


def test_body_of_the_base_is_not_changed(settings, tiny_encoder):
    asked = settings("text-classification")
    loaded, stock = task_class(asked.task)(asked).load_base(), BertForMaskedLM.from_pretrained(tiny_encoder)
    ours, theirs = loaded.bert.encoder.state_dict(), stock.bert.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_missing_weights_of_the_base_are_reported_and_trained(settings, tiny_encoder):
    asked = settings("text-classification", method="lora", steps=2)
    with pytest.warns(
        UserWarning, match=r"no weights for bert\.pooler; they are initialized from the seed and trained"
    ):
        result = train(asked)
    saved = {name.split(".")[2] + "." + name.split(".")[3] for name in weights(result.exported) if "lora" not in name}
    assert saved == {"bert.pooler", "classifier.weight", "classifier.bias"}


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_base_has_a_float32_head(settings, task):
    result = train(settings(task, method="lora", method_settings={"r": 2}, dtype="bfloat16"))
    assert result.after.loss < 0.9 * result.before.loss
    assert {tensor.dtype for tensor in weights(result.exported).values()} == {torch.float32}


def test_frames_are_fitted_to_the_gradient_of_a_classification(settings):
    result = train(
        settings("image-classification", method="quantum_peft", method_settings={"r": 2, "frame": "gradient"})
    )
    assert result.after.loss < 0.9 * result.before.loss


def test_result_json_round_trips(settings):
    result = train(settings("image-classification", method="lora", steps=3))
    found = read_result(result.out / "result.json")
    assert found.already_finished
    assert (found.before, found.after, found.task) == (result.before, result.after, "image-classification")
    assert found.trainable_head == result.trainable_head == 51
    assert found.to_dict()["after"]["accuracy_low"] == result.after.interval[0]
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["qpa", "lora"])
def test_code_in_each_model_card_loads_the_adapter(settings, task, method, monkeypatch):
    asked = settings(task, method=method, method_settings=METHODS[method], steps=3)
    result = train(asked)
    assert "| accuracy (95 % interval) | " in (result.out / "README.md").read_text()
    assert f"({result.trainable_head:,} of them in the head)" in (result.out / "README.md").read_text()
    cards = {"run": result.out, "adapter": result.adapter, "exported": result.exported}
    for name, folder in cards.items():
        text = (folder / "README.md").read_text()
        if name != "run":
            assert "0: `" in text.split("## Classes")[1]
        if method == "lora" and name != "run":
            continue  # PEFT's own empty card
        (lines,) = re.findall(r"```python\n(import.*?|from peft.*?)```", text, flags=re.DOTALL)
        monkeypatch.chdir(folder)
        found: dict = {}
        exec(lines, found)
        assert score_of(found["model"].eval(), asked).loss == pytest.approx(result.after.loss, abs=1e-5)


def test_modules_to_save_are_trained_in_addition_to_the_head(settings):
    asked = settings("image-classification", method="lora", steps=2)
    asked.method_settings = {"modules_to_save": ["layernorm"], "target_modules": ["q_proj"]}
    result = train(asked)
    saved = {name for name in weights(result.exported) if "lora" not in name}
    assert {name.split(".")[-2] for name in saved} == {"classifier", "layernorm"}
    assert result.trainable_head == 51


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "causal-lm", "labels": []}', '{"task": "x"}'])
def test_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"task\.json is damaged"):
        read_record(tmp_path)


@pytest.mark.filterwarnings("ignore:the base model has no preprocessor_config")
@pytest.mark.parametrize("method", ["lora", "qpa"])
def test_real_images(shared, settings, tmp_path, method):
    data = shared / "data" / "cifar10_subset"
    result = train(
        settings(
            "image-classification",
            model=str(make_vit(tmp_path / "vit32", image_size=32, patch_size=8)),
            data=str(data / "train_2000.npz"),
            eval_data=str(data / "test_1000.npz"),
            eval_blocks=200,
            method=method,
            method_settings=METHODS[method],
        )
    )
    assert result.after.n_examples == 200
    assert result.after.loss < result.before.loss
    assert read_record(result.adapter).labels[0] == "airplane"


@pytest.mark.filterwarnings("ignore:.*evaluation examples are also training data")
@pytest.mark.parametrize("method", ["head", "quantum_peft"])
def test_real_texts(shared, settings, method):
    data = shared / "data" / "sst2"
    result = train(
        settings(
            "text-classification",
            model=str(shared / "models" / "stories260K"),
            data=str(data / "dev.tsv"),
            eval_data=str(data / "dev.tsv"),
            eval_blocks=100,
            steps=16,
            lr=5e-3,
            seq_len=48,
            method=method,
            method_settings={"r": 2} if method == "quantum_peft" else {},
        )
    )
    assert read_record(result.adapter).labels == ("0", "1")
    assert result.after.loss < result.before.loss
