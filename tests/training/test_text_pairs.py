"""Pairs of texts: encoded, truncated and scored as stock transformers does, with token types where a model has them."""

import json
import random
import shutil

import pytest
import torch
from peft import PeftModel
from tiny_models import _WORDS
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2Config, DebertaV2Model

from qpeft.errors import ConfigError, DataError
from qpeft.training import TrainSettings, train
from qpeft.training.tasks.text_classification import TextClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore:the base model has no weights for"),
    pytest.mark.filterwarnings("ignore:.* are also training data"),
]

COLUMNS = {"text_column": "premise", "text_pair_column": "hypothesis"}


@pytest.fixture
def pairs(tmp_path):
    draw, words = random.Random(0), _WORDS.split()
    rows = [
        {"premise": " ".join(draw.choices(words, k=1 + i)), "hypothesis": " ".join(draw.choices(words, k=9 - i % 9))}
        for i in range(30)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({**row, "label": "ny"[i % 2]}) + "\n" for i, row in enumerate(rows)))
    return file, rows


@pytest.fixture(scope="session")
def tiny_bert(tiny_encoder, tmp_path_factory):
    """Folder of the tiny encoder, whose tokenizer gives token types as BERT's does."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    AutoTokenizer.from_pretrained(folder, model_input_names=names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_deberta(tiny_bert, tmp_path_factory):
    """Folder of a DeBERTa of the shape of DeBERTaV3, width 16, with the tokenizer of the tiny encoder."""
    folder = tmp_path_factory.mktemp("tiny_deberta")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    attention |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 16}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "type_vocab_size": 0}
    DebertaV2Model(DebertaV2Config(**shape, **attention, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def read(tmp_path):
    def make(model, data, **changes) -> TextClassification:
        settings = {"task": "text-classification", "model": str(model), "data": str(data), "out": str(tmp_path / "run")}
        return TextClassification(TrainSettings(**{**settings, **COLUMNS, **changes}), labels=("n", "y"))

    return make


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_deberta", "tiny_model"])
@pytest.mark.parametrize("seq_len", [12, 64])
def test_pairs_are_encoded_as_by_the_tokenizer(model, seq_len, read, pairs, request):
    folder, (file, rows) = request.getfixturevalue(model), pairs
    task = read(folder, file, seq_len=seq_len)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for (text, _), row in zip(task.evaluation, rows, strict=True):
        own = tokenizer(row["premise"], row["hypothesis"], truncation=True, max_length=seq_len)
        assert text.ids.tolist() == own["input_ids"]
        if model == "tiny_bert":
            assert text.types.tolist() == own["token_type_ids"]
        else:  # a model with no token types, and a tokenizer that gives none
            assert text.types is None


def test_token_types_reach_the_model(tiny_bert, read, pairs):
    task = read(tiny_bert, pairs[0])
    model = task.load_base().eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    batch = {name: part for name, part in task.collate(task.evaluation).items() if name != "labels"}
    rows = [(row["premise"], row["hypothesis"]) for row in pairs[1]]
    own = tokenizer(*map(list, zip(*rows, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**batch).logits
        assert torch.equal(found, model(**own).logits)
        without = model(**{name: part for name, part in own.items() if name != "token_type_ids"}).logits
    assert not torch.allclose(found, without, atol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_deberta"])
def test_pairs_train_and_load_with_stock_peft(model, pairs, tmp_path, request):
    folder = request.getfixturevalue(model)
    settings = TrainSettings(
        **{"task": "text-classification", "model": str(folder), "data": str(pairs[0]), "out": str(tmp_path / "run")},
        **{"method": "qpa", "method_settings": {"r": 2, "chunk_size": 32}, "steps": 2, "batch_size": 4, **COLUMNS},
    )
    result = train(settings)
    assert result.after.n_examples == 2
    options = json.loads((result.exported / "task.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(options["labels"]))
    stock = PeftModel.from_pretrained(base, result.exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = pairs[1][-2:]  # the last one of each class
    own = tokenizer(
        [row["premise"] for row in held_out],
        [row["hypothesis"] for row in held_out],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = stock(**own).logits
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum").item()
    assert result.after.nats == pytest.approx(nats, rel=1e-4)


def test_row_is_left_out_only_if_both_texts_are_empty(tiny_encoder, read, tmp_path):
    rows = [("", "a fox"), ("the king", ""), ("", " ")]
    lines = (json.dumps({"premise": one, "hypothesis": other, "label": "n"}) + "\n" for one, other in rows)
    (tmp_path / "x.jsonl").write_text("".join(lines))
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        task = read(tiny_encoder, tmp_path / "x.jsonl")
    assert len(task.evaluation) == 2


def test_pairs_of_a_table_without_a_header(tiny_encoder, read, tmp_path):
    (tmp_path / "x.tsv").write_text("the king\ta fox\tn\n")
    task = read(tiny_encoder, tmp_path / "x.tsv")
    assert task.tokenizer.decode(task.evaluation[0][0].ids) == "[CLS] the king [SEP] a fox [SEP]"


def test_missing_second_column_is_named(tiny_encoder, read, pairs):
    with pytest.raises(DataError, match="but no 'second'; set text_pair_column"):
        read(tiny_encoder, pairs[0], text_pair_column="second")


@pytest.mark.parametrize("task", ["causal-lm", "image-classification"])
def test_pairs_of_another_task_are_refused(task):
    settings = TrainSettings(model="m", data="d", out="o", task=task, text_pair_column="b")
    with pytest.raises(ConfigError, match=f"text_pair_column is for labelled texts, not for {task}"):
        settings.check()
