"""Classifications and regressions: encoded and scored as by stock transformers; learned, saved and
loaded again.
"""

import json
import math
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import edit_json, write_rows
from image_files import bars
from peft import PeftModel, get_peft_model
from runs import weights
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from tiny_models import _WORDS, opinions
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPConfig,
    ConvNextConfig,
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    PoolFormerConfig,
    PoolFormerForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
)

import qpeft
from qpeft.core.model_card import users_card
from qpeft.errors import CheckpointError, ConfigError, DataError, DataWarning
from qpeft_lab import RunSettings, train
from qpeft_lab.training.classifier import find_head, read_record
from qpeft_lab.training.methods import build_adapter
from qpeft_lab.training.run_folder import RunFolder
from qpeft_lab.training.tasks import TASK_CLASSES

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:the base model has no weights for"),
]

TEXTS, NUMBERS, IMAGES = TASKS = ["text-classification", "text-regression", "image-classification"]
AUTO = dict.fromkeys((TEXTS, NUMBERS), AutoModelForSequenceClassification) | {
    IMAGES: AutoModelForImageClassification
}
METHODS = {
    "lora": {"r": 2},
    "qpa": {"r": 2, "chunk_size": 32, "hidden": (6, 5)},
    "quantum_peft": {"r": 2, "lora_alpha": 4},
    "head": {},
    "full": {},
}
PAIR = {"text_column": "premise", "text_pair_column": "hypothesis"}


def write_numbers(path, n, seed):
    """Texts whose number is 1 for one opinion and -2 for the other, and a hundredth for each word."""
    rows = [
        (text, len(text.split()) / 100 + (1 if name == "good" else -2))
        for text, name in opinions(n, seed)
    ]
    path.write_text(
        "".join(json.dumps({"text": text, "label": number}) + "\n" for text, number in rows)
    )
    return path


@pytest.fixture
def settings(tiny_encoder, tiny_vit, opinion_files, bar_files, tmp_path):
    numbers = (
        write_numbers(tmp_path / "train.jsonl", 96, 0),
        write_numbers(tmp_path / "dev.jsonl", 40, 1),
    )
    files = {
        TEXTS: (tiny_encoder, opinion_files),
        NUMBERS: (tiny_encoder, numbers),
        IMAGES: (tiny_vit, bar_files),
    }

    def make(task: str, out: str = "run", **changes) -> RunSettings:
        model, (data, eval_data) = files[task]
        method = changes.setdefault("method", "lora")
        chosen = {
            "steps": 40,
            "lr": 1e-2,
            "batch_size": 16,
            "eval_every": 20,
            "method_settings": METHODS[method],
        }
        paths = {
            "model": str(model),
            "data": str(data),
            "eval_data": str(eval_data),
            "out": str(tmp_path / out),
        }
        return RunSettings(**{"task": task, **paths, **chosen, **changes})

    return make


@pytest.fixture
def read(settings):
    """The task of a run, and its base."""

    def make(task, **changes):
        made = TASK_CLASSES[task](settings(task, **changes))
        made.model = made.load_base().eval()
        return made

    return make


@pytest.fixture
def tiny_decoder(tiny_model, tmp_path):
    """The tiny GPT-2 without dropout."""
    folder = shutil.copytree(tiny_model, tmp_path / "decoder")
    edit_json(folder / "config.json", attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    return folder


# -- scores


@pytest.mark.parametrize("task, base", [*((task, None) for task in TASKS), (TEXTS, "tiny_decoder")])
def test_score_equals_stock_transformers_on_single_examples(read, request, task, base):
    """A decoder's tokenizer has no padding token."""
    task = read(task, **({"model": str(request.getfixturevalue(base))} if base else {}))
    labels = [label for _, label in task.evaluation]
    rows = [
        {name: part for name, part in task.collate([one]).items() if name != "labels"}
        for one in task.evaluation
    ]
    with torch.no_grad():
        logits = torch.cat([task.model(**row).logits for row in rows])
    score = task.score(task.model)
    for batch_size in (1, 3, len(labels)):
        task.settings.batch_size = batch_size
        again = task.score(task.model)
        assert again.loss == pytest.approx(score.loss, rel=1e-6)
    if task.settings.task == NUMBERS:
        predictions = logits.squeeze(-1).double()
        assert score.loss == pytest.approx(
            (predictions - torch.tensor(labels)).square().mean().item(), 1e-5
        )
        assert score.metrics["pearson"] == pytest.approx(
            pearsonr(predictions, labels).statistic, abs=1e-4
        )
        assert score.metrics["spearman"] == pytest.approx(
            spearmanr(predictions, labels).statistic, abs=1e-2
        )
    else:
        predictions = logits.argmax(1).tolist()
        average = "binary" if len(task.labels) == 2 else "macro"
        metrics = score.metrics
        assert score.loss == pytest.approx(cross_entropy(logits, torch.tensor(labels)).item(), 1e-5)
        assert metrics["accuracy"] == np.equal(labels, predictions).mean()
        assert score.n_scored == len(labels)
        assert 0 <= metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"] <= 1
        assert metrics["mcc"] == matthews_corrcoef(labels, predictions)
        assert metrics["f1"] == f1_score(labels, predictions, average=average, zero_division=0)


def test_predictions_that_are_nan_or_equal(read):
    task = read(TEXTS)
    for parameter in task.model.parameters():
        parameter.data.fill_(torch.nan)
    assert task.score(task.model).metrics["accuracy"] == 0

    task = read(NUMBERS)
    torch.nn.init.zeros_(task.model.classifier.weight)
    score = task.score(task.model)

    assert score.metrics == {"pearson": None, "spearman": None}
    assert json.dumps(score.to_dict(), allow_nan=False)


# -- pairs of texts


@pytest.fixture(scope="session")
def tiny_bert(tiny_encoder, tmp_path_factory):
    """Folder of the tiny encoder, whose tokenizer gives token types as BERT's does."""
    folder = shutil.copytree(tiny_encoder, tmp_path_factory.mktemp("bert") / "base")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    AutoTokenizer.from_pretrained(folder, model_input_names=names).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder"])
def test_pairs_are_encoded_truncated_trained_and_loaded_as_by_stock_libraries(
    settings, model, tmp_path, request
):
    draw = random.Random(0)
    words = _WORDS.split()
    folder = request.getfixturevalue(model)
    texts = [[" ".join(draw.choices(words, k=n)) for n in (1 + i, 9 - i % 9)] for i in range(30)]
    rows = [
        {"premise": one, "hypothesis": other, "label": "ny"[i % 2]}
        for i, (one, other) in enumerate(texts)
    ]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    common = {
        "model": str(folder),
        "data": str(file),
        "eval_data": None,
        "batch_size": 4,
        "steps": 2,
        **PAIR,
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for seq_len in (12, 64):
        task = TASK_CLASSES[TEXTS](settings(TEXTS, **common, seq_len=seq_len), labels=("n", "y"))
        for (text, _), pair in zip(task.evaluation, texts, strict=True):
            own = tokenizer(*pair, truncation=True, max_length=seq_len)
            # others: a model with no token types, and a tokenizer that gives none
            names = ["input_ids", "token_type_ids"] if model == "tiny_bert" else ["input_ids"]
            assert {name: part.tolist() for name, part in text.items()} == {
                name: own[name] for name in names
            }
    result = train(settings(TEXTS, method="qpa", **common))
    options = read_record(result.exported).options()
    base = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    stock = PeftModel.from_pretrained(base, result.exported).eval()
    nats = 0.0
    for label, pair in enumerate(texts[-2:]):  # the last one of each class is held out
        own = tokenizer(*pair, truncation=True, max_length=64, return_tensors="pt")
        own = own if model == "tiny_bert" else {"input_ids": own["input_ids"]}
        with torch.no_grad():
            nats += cross_entropy(stock(**own).logits, torch.tensor([label])).item()

    assert result.after.loss == pytest.approx(nats / 2, rel=1e-4)
    assert result.after.n_scored == 2


def test_row_is_left_out_only_if_both_texts_are_empty(settings, tmp_path):
    rows = [("", "a fox"), ("the king", ""), ("", " ")]
    lines = (
        json.dumps({"premise": one, "hypothesis": other, "label": "n"}) + "\n"
        for one, other in rows
    )
    (tmp_path / "x.jsonl").write_text("".join(lines))
    with pytest.warns(DataWarning) as warned:
        task = TASK_CLASSES[TEXTS](
            settings(TEXTS, data=str(tmp_path / "x.jsonl"), **PAIR), labels=("n", "y")
        )

    assert len(task.evaluation) == 2

    counts = {str(warning.message).partition(" rows")[0] for warning in warned}
    assert counts == {"1 of 2", "1 of 3"}


# -- numbers


@pytest.mark.parametrize(
    "label", ["good", None, math.nan, "nan", math.inf, True, 1e308, "-1e30", 10**400]
)
def test_label_that_is_no_number_is_named_with_its_row(settings, tmp_path, label):
    rows = [
        {"text": "the king", "label": 1},
        {"text": "a fox", "label": "2.5"},
        {"text": "a bird", "label": label},
    ]
    file = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"bad\.jsonl, row 3"):
        TASK_CLASSES[NUMBERS](settings(NUMBERS, data=str(file)))


def test_label_that_the_trainer_ignores_is_counted(settings, tmp_path):
    (tmp_path / "low.jsonl").write_text(
        '{"text": "the king", "label": -100}\n{"text": "a fox", "label": 1}\n'
    )
    task = TASK_CLASSES[NUMBERS](settings(NUMBERS, data=str(tmp_path / "low.jsonl")))
    labels = task.collate(task.train)["labels"]

    assert labels.ne(-100).all()
    assert labels.tolist() == pytest.approx([-100, 1])


# -- runs


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "method", [m if m == "qpa" else pytest.param(m, marks=pytest.mark.long) for m in METHODS]
)
def test_each_method_learns_and_reloads_in_stock_libraries(settings, task, method, monkeypatch):
    asked = settings(task, method=method)
    result = train(asked)
    assert result.after.loss < 0.9 * result.before.loss
    assert RunFolder(result.out).read_result().after == result.after

    made = TASK_CLASSES[task](asked)
    pooler = 0 if task == IMAGES else 16 * 16 + 16  # a masked language model has none
    assert result.trainable_head == (16 + 1) * len(made.labels) + pooler

    if method == "head":
        assert result.trainable == result.deployed == result.trainable_head
    else:
        assert result.trainable > result.trainable_head
    loaded = {}
    if method == "full":
        loaded["full"] = AUTO[task].from_pretrained(result.exported)
        assert list(loaded["full"].config.id2label.values()) == list(made.labels)
    else:
        options = read_record(result.exported).options()
        base = AUTO[task].from_pretrained(asked.model, **options)
        assert list(base.config.id2label.values()) == list(made.labels)
        loaded["stock"] = PeftModel.from_pretrained(base, result.exported)
        for folder in (result.exported, *([result.adapter] if method == "qpa" else [])):
            assert users_card(folder) is None  # so the next export writes it again
            text = (folder / "README.md").read_text()
            assert "## Outputs" in text
            matches = re.findall(r"```python\n(import.*?|from peft.*?)```", text, flags=re.DOTALL)
            # the card of others is PEFT's
            assert len(matches) == (method in ("qpa", "quantum_peft"))
            monkeypatch.chdir(folder)
            for lines in matches:
                exec(lines, made_by_card := {})
                loaded[folder.name] = made_by_card["model"]
    for model in loaded.values():
        assert made.score(model.eval()).loss == pytest.approx(result.after.loss, abs=1e-5)


@pytest.mark.parametrize("method", ["head", "full"])
def test_batch_norm_keeps_the_statistics_of_the_base(settings, tiny_vit, tmp_path, method):
    """They are in no adapter: it would be another model on its base."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path / "resnet")
    shutil.copy(tiny_vit / "preprocessor_config.json", tmp_path / "resnet")
    chosen = settings(IMAGES, model=str(tmp_path / "resnet"), method=method, steps=20)
    result = train(chosen)

    made = TASK_CLASSES[IMAGES](chosen)
    folder = result.exported if method == "full" else tmp_path / "resnet"
    options = {} if method == "full" else read_record(result.exported).options()
    model = AutoModelForImageClassification.from_pretrained(folder, **options)
    fresh = ResNetForImageClassification.from_pretrained(tmp_path / "resnet")
    means = {name: b for name, b in model.named_buffers() if name.endswith("running_mean")}
    for name, buffer in fresh.named_buffers():
        if name in means:
            assert torch.equal(means.pop(name), buffer)
    assert not means
    if method != "full":
        model = PeftModel.from_pretrained(model, result.exported)
    assert made.score(model.eval()).loss == pytest.approx(result.after.loss, abs=1e-5)
    assert result.after.loss < result.before.loss


def test_adapter_in_a_frame_file_has_its_classes_though_no_card(settings, read, tmp_path):
    made = read(TEXTS)
    config = qpeft.QuantumPeftConfig(
        n_layers=1, share="type", r=1, frame="gradient", frame_rank=4, target_modules=["value"]
    )
    qpeft.fit_frames(
        get_peft_model(made.model, config), [made.collate(made.train[:8])], save_to=tmp_path / "own"
    )
    chosen = {"frames": str(tmp_path / "own.safetensors"), "r": 1}
    result = train(settings(TEXTS, method="quantum_peft", method_settings=chosen, steps=2))

    assert read_record(result.adapter).labels == made.labels
    assert not (result.adapter / "README.md").exists()

    loaded = qpeft.load(made.load_base(), result.adapter, frames=chosen["frames"])
    assert made.score(loaded.eval()).loss == pytest.approx(result.after.loss, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_base_has_a_float32_head(settings, task):
    result = train(settings(task, dtype="bfloat16"))
    assert result.after.loss < 0.9 * result.before.loss
    assert {tensor.dtype for tensor in weights(result.exported).values()} == {torch.float32}


# -- heads


def test_new_head_depends_only_on_the_seed(read):
    def head(seed):
        torch.manual_seed(torch.seed() % 1000)  # whatever was drawn before
        return read(TEXTS, seed=seed).model.classifier.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_head_of_the_base_is_kept_for_its_classes_and_replaced_for_others(settings, read, tmp_path):
    first = train(settings(IMAGES, "first", method="full", steps=2))
    own = weights(first.exported)["classifier.weight"]
    same = read(IMAGES, model=str(first.exported))

    assert torch.equal(same.model.classifier.weight, own)
    assert same.score(same.model).loss == pytest.approx(first.after.loss, rel=1e-6)

    renamed = bars(tmp_path / "other.parquet", 96, names=("x", "y", "z"))
    with pytest.warns(UserWarning, match="has x, y, z: a new head replaces it"):
        other = read(IMAGES, model=str(first.exported), data=str(renamed), eval_data=None)
    assert same.has_new_head is False
    assert other.has_new_head is True
    assert not torch.equal(other.model.classifier.weight, own)


def test_head_without_names_is_kept_for_classes_that_are_indices(settings, read, tmp_path):
    first = train(settings(IMAGES, "first", method="full", steps=2))
    stock = AutoModelForImageClassification.from_pretrained(first.exported)
    stock.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}  # as transformers writes
    stock.config.label2id = {name: index for index, name in stock.config.id2label.items()}
    stock.save_pretrained(first.exported)
    indices = bars(tmp_path / "indices.parquet", 96, names=("0", "1", "2"))

    task = read(IMAGES, model=str(first.exported), data=str(indices), eval_data=None)

    assert task.has_new_head is False
    assert task.labels == ("0", "1", "2")
    assert torch.equal(task.model.classifier.weight, stock.classifier.weight)


def test_heads_of_other_families_are_found():
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    part = {**small, "image_size": 8, "patch_size": 4}
    configs = [
        (TEXTS, RobertaConfig(vocab_size=9, **small), ["classifier"]),
        (TEXTS, LlamaConfig(vocab_size=9, **small), ["score"]),
        (TEXTS, DebertaV2Config(vocab_size=9, **small), ["classifier", "pooler"]),
        (
            TEXTS,
            DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_heads=2),
            ["classifier", "pre_classifier"],
        ),
        (IMAGES, ConvNextConfig(num_stages=2, hidden_sizes=[4, 8], depths=[1, 1]), ["classifier"]),
        (
            IMAGES,
            CLIPConfig(text_config=small, vision_config=part, projection_dim=8),
            ["classifier"],
        ),
    ]
    with torch.device("meta"):
        for task, config, names in configs:
            assert sorted(find_head(AUTO[task].from_config(config))) == names


def test_head_whose_name_ends_names_of_the_body_is_refused():
    """PEFT compares the ends of names, so `norm` would be each `before_norm`, too."""
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4}
    base = PoolFormerForImageClassification(PoolFormerConfig(**sizes))
    run = RunSettings(model="m", data="d", out="o", task=IMAGES, method="head")
    with pytest.raises(ConfigError, match=r"would train .*before_norm as a part of it"):
        build_adapter(run, base, find_head(base))


def test_prompt_tuning_of_a_decoder_that_classifies_is_refused(settings, tiny_decoder):
    """It would read the answer at the padding of the shorter texts of a batch."""
    run = settings(TEXTS, model=str(tiny_decoder))
    run = replace(run, method="prompt", method_settings={"num_virtual_tokens": 4})
    with pytest.raises(ConfigError, match="classify the padding"):
        train(run)


def test_modules_to_save_are_trained_in_addition_to_the_head(settings):
    given = {"modules_to_save": ["layernorm"], "target_modules": ["q_proj"]}
    result = train(settings(IMAGES, steps=2, method_settings=given))
    saved = {name for name in weights(result.exported) if "lora" not in name}
    assert {name.split(".")[-2] for name in saved} == {"classifier", "layernorm"}
    assert result.trainable_head == 51


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"task": "causal-lm", "labels": []}', '{"task": "x"}']
)
def test_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"task\.json"):
        read_record(tmp_path)
