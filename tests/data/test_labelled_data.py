"""Labelled texts: columns, classes, lengths, held-out examples, and the hash of what a run reads."""

import json
import shutil

import datasets
import pytest
from folders import edit_json, write_rows
from transformers import AutoTokenizer, VitsConfig

from qpeft.errors import ConfigError, DataError, DataWarning, InputError
from qpeft_lab import RunSettings
from qpeft_lab.data.labelled import collect_labels, hold_out, label_number
from qpeft_lab.data.sources import load_rows
from qpeft_lab.training.tasks import TextClassification

pytestmark = pytest.mark.filterwarnings("ignore:the base model has no weights for")


@pytest.fixture
def read(tiny_encoder, tmp_path):
    """Read texts with their classes as a run does: a file, or rows that are written to one."""

    def make(data, name="x.jsonl", **settings) -> TextClassification:
        if isinstance(data, list):
            keys = ("text", "label")
            (tmp_path / name).write_text(
                "".join(json.dumps(dict(zip(keys, r, strict=True))) + "\n" for r in data)
            )
            data = tmp_path / name
        chosen = {
            "task": "text-classification",
            "model": str(tiny_encoder),
            "out": str(tmp_path / "run"),
            **settings,
        }
        return TextClassification(RunSettings(data=str(data), **chosen))

    return make


ROWS = [
    ("the king sings", "b"),
    ("a fox", "a"),
    ("the queen", "b"),
    ("wood at night", "a"),
]


def test_tables_in_all_formats_give_the_same_examples(read, tmp_path):
    forms = {
        "table.tsv": "label\ttext\n" + "".join(f"{name}\t{text}\n" for text, name in ROWS),
        "table.csv": "text,label\n" + "".join(f"{text},{name}\n" for text, name in ROWS),
        "lines.jsonl": "".join(json.dumps({"s": text, "c": name}) + "\n" for text, name in ROWS),
    }
    hashes = set()
    for file, content in forms.items():
        (tmp_path / file).write_text(content)
        columns = {"text_column": "s", "label_column": "c"} if '"s"' in content else {}
        task = read(tmp_path / file, eval_data=str(tmp_path / file), **columns)
        assert task.labels == ("a", "b")
        for part in (task.train, task.evaluation):
            decoded = [
                task.tokenizer.decode(text["input_ids"], skip_special_tokens=True)
                for text, _ in part
            ]
            assert list(zip(decoded, (task.labels[i] for _, i in part), strict=True)) == ROWS
        hashes.add(task.sha256())

    assert len(hashes) == 1


def test_table_without_a_header_has_its_first_line_as_a_row(read, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("".join(f"{text}\t{name}\n" for text, name in ROWS))
    with pytest.warns(DataWarning, match="no line with names of columns; taken as text, label"):
        task = read(table, eval_data=str(table))

    assert task.labels == ("a", "b")
    assert len(task.train) == len(ROWS)

    table.write_text("review\tstars\n" + "".join(f"{text}\t{name}\n" for text, name in ROWS))
    with pytest.raises(DataError, match="review, stars, but no 'text'; set text_column, or add"):
        read(table)


@pytest.mark.parametrize(
    "found, known, names",
    [
        (["10", "9", "10", "-1"], (), ("-1", "9", "10")),
        (["2", "10", "x"], (), ("10", "2", "x")),
        (["9" * 5000, "1"], (), ("1", "9" * 5000)),
        (["neg", "pos"], ("pos", "neg"), ("pos", "neg")),
        (["neg", "pos"], ("pos", "neg", "none"), ("neg", "pos")),
    ],
)
def test_classes_are_sorted_by_value_or_name_or_as_those_of_the_base(found, known, names):
    """The order is the meaning of the outputs, so it does not depend on the rows' order."""
    assert collect_labels(found, "data", known) == names


@pytest.mark.parametrize(
    "rows, changes, error, named",
    [
        (ROWS, {"label_column": "class"}, DataError, "label_column"),
        (ROWS, {"text_column": "txt"}, DataError, "text_column"),
        *(([("a", 1), ("b", value)], {}, DataError, "row 2") for value in (None, "  ", 0.5, ["a"])),
        ([(5, 1), (6, 0)], {}, DataError, "row 1"),
        ([("a", 1), ("b", 1)], {}, DataError, "class '1'"),
        ([("", 1), (" ", 0)], {}, DataError, "text"),
        ([("a", 1), ("b", 0)], {}, DataError, "eval_data"),
        ([], {}, DataError, "empty"),
        (ROWS, {"eval_data": [("a", "a"), ("the", "fine")]}, DataError, "'fine'"),
        (ROWS, {"seq_len": 65}, ConfigError, "seq_len=65"),
        (ROWS, {"seq_len": 9, "model": "short"}, ConfigError, "seq_len=9"),
        ([], {"model": "speech"}, InputError, "vits"),  # before the data are read
    ],
)
def test_unusable_data_or_base_is_refused(
    read, tiny_encoder, tmp_path, rows, changes, error, named
):
    if (model := changes.get("model")) == "speech":
        VitsConfig().save_pretrained(tmp_path / model)
    elif model == "short":
        shutil.copytree(tiny_encoder, tmp_path / model)
        edit_json(tmp_path / model / "tokenizer_config.json", model_max_length=8)
    changes = {**changes, **({"model": str(tmp_path / model)} if model else {})}
    if isinstance(others := changes.get("eval_data"), list):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in others)
        (tmp_path / "dev.jsonl").write_text("".join(lines))
        changes["eval_data"] = str(tmp_path / "dev.jsonl")

    with pytest.raises(error, match=named):
        read(rows, **changes)


def test_rows_without_a_text_are_left_out_and_counted(read):
    with pytest.warns(UserWarning, match="1 of 5 rows"):
        task = read([*ROWS, (" ", "a")], eval_data=None)
    assert len(task.train) + len(task.evaluation) == 4


def test_pairs_without_one_of_their_texts_are_read_with_a_warning(read, tmp_path):
    rows = [
        {"text": "a", "other": text, "label": label}
        for text, label in zip("bc ", "xyx", strict=True)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(DataWarning, match="1 of 3 rows of .* nothing in column 'other'"):
        read(file, text_pair_column="other", eval_data=str(file))


def test_second_texts_that_no_option_names_are_noted(read, tmp_path):
    rows = [{"idx": n, "text": "a", "other": "x", "label": str(n % 2)} for n in range(4)]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.warns(DataWarning, match="columns text, label, which are read, and other, which"):
        read(file, eval_data=str(file))
    read(file, text_pair_column="other", eval_data=str(file))  # no warning, which is an error here


def test_texts_are_truncated_before_their_last_special_token(
    read, tiny_encoder, opinion_files, tmp_path
):
    """The separator at the end stays, also if the base takes fewer tokens than seq_len."""
    task = read([("a fox went into the wood", "1"), ("the king", "0")] * 2, seq_len=5)
    long, short = (task.train[place][0]["input_ids"] for place in (0, 1))
    assert len(long) == 5
    assert len(short) == 4
    assert long[-1] == task.tokenizer.sep_token_id

    base = shutil.copytree(tiny_encoder, tmp_path / "short")
    edit_json(base / "tokenizer_config.json", model_max_length=8)
    assert (
        max(len(text["input_ids"]) for text, _ in read(opinion_files[0], model=str(base)).train)
        == 8
    )


def test_padding_token_that_the_model_lacks_is_not_used(read, tiny_model, opinion_files, tmp_path):
    """Its embedding would be outside of the table."""
    folder = shutil.copytree(tiny_model, tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 300  # one beyond the embedding
    tokenizer.save_pretrained(folder)
    assert read(opinion_files[0], model=str(folder)).pad == tokenizer.eos_token_id


def test_one_example_in_20_of_each_class_is_held_out():
    rows = [(number, "ab"[number % 3 == 0]) for number in range(150)]  # 100 a, 50 b
    train, held_out = hold_out(rows, "data")
    assert sorted(train + held_out) == rows
    assert [number for number, name in held_out if name == "b"] == [57, 117]
    assert len([1 for _, name in held_out if name == "a"]) == 5

    train, held_out = hold_out([(1, "a"), (2, "b"), (3, "a"), (4, "c")], "data")
    assert train == [(1, "a"), (2, "b"), (4, "c")]  # of a small class the last
    assert held_out == [(3, "a")]
    assert hold_out(rows, "data", has_classes=False)[1] == rows[19::20]


def test_hash_depends_on_texts_classes_and_split_and_examples_are_limited(
    read, opinion_files, tmp_path
):
    """A run resumes only with the same examples."""
    rows = [
        ("a fox", "1"),
        ("the king", "0"),
        ("a queen", "1"),
        ("the wood", "0"),
    ]
    assert read(rows).sha256() == read(rows).sha256()

    others = [
        rows[::-1],
        [*rows[:3], ("the bird", "0")],
        [*rows[:3], ("the wood", "1")],
    ]
    others.append([(text, f"c{name}") for text, name in rows])
    hashes = {read(other).sha256() for other in (rows, *others)}
    changes = {"seq_len": 3}, {"eval_data": str(tmp_path / "x.jsonl")}

    assert len(hashes | {read(rows, **change).sha256() for change in changes}) == 7

    train, dev = map(str, opinion_files)
    every, none, few = (read(train, eval_data=dev, eval_blocks=n) for n in (None, 0, 7))
    assert [len(task.evaluation) for task in (every, none, few)] == [40, 40, 7]
    assert every.sha256() == none.sha256() != few.sha256()


def test_class_names_of_a_hub_data_set_are_used(monkeypatch, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
        {"text": "c", "label": -1},
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    made.to_parquet(tmp_path / "a.parquet")
    for source in ("someone/opinions", str(tmp_path / "a.parquet")):
        assert [row["label"] for row in load_rows(source, "train")] == ["pos", "neg", None]


@pytest.mark.parametrize("label", ["1_0", "\u0661\u0660", "", "x", "nan", "1e16", None, True])
def test_numbers_that_only_python_reads_are_no_labels(label):
    with pytest.raises(DataError, match="a, row 3: the label is"):
        label_number(label, "a, row 3")
    assert [label_number(each, "a") for each in ("-1.5", " 2e3 ", 7)] == [-1.5, 2000.0, 7.0]
