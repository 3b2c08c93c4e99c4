"""Sources of data: files, folders, built-in texts and data sets; their names, splits and columns."""

import csv
import json
import os
import warnings
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from qpeft.errors import DataError, DataWarning
from qpeft_lab import RunSettings
from qpeft_lab.data import sources
from qpeft_lab.data.sources import load_examples, load_rows

KEPT = {"pad_rows": True}

pytestmark = pytest.mark.filterwarnings("ignore:.*which are not")  # of columns


def load(source, split="train", **columns):
    return load_examples(str(source), split, RunSettings(model="m", data="d", out="o", **columns))


def write(path: Path, content) -> Path:
    """A text, or rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        content if isinstance(content, str) else "\n".join(map(json.dumps, content)),
        encoding="utf-8",
    )
    return path


MESSAGES = [
    {"role": r, "content": c} for r, c in zip(("system", "user", "assistant"), "SQA", strict=True)
]


@pytest.mark.parametrize(
    "name, content, columns, expected",
    [
        ("a.txt", "one\n\ntwo\nünd\n", {}, [{"text": "one\n\ntwo\nünd\n"}]),
        ("a.txt", "one\n\n two\x0b\n", KEPT, [{"text": "one"}, {"text": ""}, {"text": " two\x0b"}]),
        (
            "a.jsonl",
            [{"text": "one", "n": 1}, {"text": "two", "n": 2}],
            {},
            [{"text": "one"}, {"text": "two"}],
        ),
        ("a.json", '[{"text": "one"}, {"text": "two"}]', {}, [{"text": "one"}, {"text": "two"}]),
        ("a.json", '["one", "two"]', {}, [{"text": "one"}, {"text": "two"}]),
        ("a.csv", "text,n\none,1\ntwo,2\n", {}, [{"text": "one"}, {"text": "two"}]),
        # every field is a text as it is written, in 10,000 rows and after them
        (
            "a.csv",
            "text\n" + "007\n" * 10_000 + "null\nNA\nNone\nnan",
            {},
            [{"text": word} for word in (*["007"] * 10_000, "null", "NA", "None", "nan")],
        ),
        ("a.tsv", 'text\tn\na "b\t1\r\n\nc" d\t0', {}, [{"text": 'a "b'}, {"text": 'c" d'}]),
        ("a.jsonl", [{"text": " o\n"}, {"text": None}], KEPT, [{"text": " o\n"}, {"text": ""}]),
        ("a.json", [{"q": "Q", "a": "A", "text": "T"}], {}, [{"text": "T"}]),
        (
            "a.jsonl",
            [{"q": "Q", "a": "A", "text": "T"}],
            {"prompt_column": "q", "completion_column": "a"},
            [{"prompt": "Q", "completion": "A"}],
        ),
        ("a.jsonl", [{"messages": MESSAGES}], {}, [{"messages": MESSAGES}]),
    ],
)
def test_file_gives_rows_of_one_format(tmp_path, name, content, columns, expected):
    assert load(write(tmp_path / name, content), **columns) == expected


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_path_is_literal_and_a_folder_is_read_in_order_of_name(tmp_path, suffix):
    def put(name, text):
        file = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            parquet.write_table(pyarrow.table({"text": [text]}), file)
        else:
            write(file, text if suffix == "txt" else f"text\n{text}\n")
        return file

    put("data1", "other")
    write(tmp_path / "b.jsonl", [{"text": "third"}])
    write(tmp_path / "README.md", "not data")
    write(tmp_path / "._b.jsonl", "nor this")
    bracket = put("data[1]", "mine")
    star = put("a*", "second")
    colons = put("a:b:c", "2b")

    assert load(colons) == [{"text": "2b"}]
    assert load(bracket) == [{"text": "mine"}]
    assert load(star) == [{"text": "second"}]
    with pytest.warns(DataWarning, match=r"not read in .*: README\.md; files must end in"):
        rows = load(tmp_path)
    assert [row["text"] for row in rows] == ["second", "2b", "third", "other", "mine"]


@pytest.mark.parametrize(
    "name, content, kept, found",
    [
        ("a.csv", "text,n\none,1\n,2\n", {"text": "one"}, "1 of 2 rows"),
        (
            "a.jsonl",
            [{"prompt": "P", "completion": "A"}, {"prompt": "Q", "completion": ""}],
            {"prompt": "P", "completion": "A"},
            "1 of 2 rows",
        ),
        (
            "a.jsonl",
            [
                {"messages": m}
                for m in (MESSAGES[:2], MESSAGES, [], [MESSAGES[1], {**MESSAGES[2], "content": ""}])
            ],
            {"messages": MESSAGES},
            "3 of 4 rows",
        ),
    ],
)
def test_rows_with_nothing_to_score_are_left_out_with_a_warning(
    tmp_path, name, content, kept, found
):
    with pytest.warns(UserWarning, match=found):
        assert load(write(tmp_path / name, content)) == [kept]


def test_answers_without_a_prompt_are_read_with_a_warning(tmp_path):
    rows = [{"prompt": "P", "completion": "A"}, {"promt": "Q", "completion": "B"}]
    with pytest.warns(DataWarning, match="1 of 2 rows of .* nothing in column 'prompt'"):
        assert load(write(tmp_path / "a.jsonl", rows))[1] == {"prompt": "", "completion": "B"}


def test_quoted_fields_of_a_tsv_are_named(tmp_path):
    texts = ['He said "hi"\tto her', '"Hi," he said.', 'He "" ', '"""']
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as opened:
            writer = csv.writer(opened, delimiter=delimiter)
            writer.writerows([["text"], *([text.replace("\t", " ")] for text in texts)])
    assert load(tmp_path / "a.csv")[0] == {"text": 'He said "hi" to her'}
    with pytest.warns(DataWarning, match=r"a\.tsv has 4 fields in quotation marks.*as \.csv"):
        assert load(tmp_path / "a.tsv")[1] == {"text": '"""Hi,"" he said."'}

    # marks of the text itself, as in the files of GLUE
    plain = write(tmp_path / "b.tsv", "text\n" + "\n".join(texts[1:]).replace("\t", " "))
    with warnings.catch_warnings(action="error"):
        assert load(plain) == [{"text": text.strip("\n")} for text in texts[1:]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", ""),
        ("a.txt", b"\xfcnd"),
        ("a.tsv", "text\tn\none\t1\ntwo\twords\t2\n"),
        ("a.csv", "body,n\none,1\n"),
        ("a.csv", "text,n\n,1\n,2\n"),
        ("a.csv", "text,n\none, or two,1\nthree, or four,2\n"),
        ("a.csv", "text,text\none,1\n"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n' * 30),
        ("a.jsonl", '{"messages": [{"role": "user"}]}'),
        ("a.jsonl", '{"text": ["list"]}'),
        ("a.jsonl", '{"text": "one"}\n{"text": 2}'),
        ("a.jsonl", '{"text": "a\\ud800"}'),
        ("a.parquet", "no parquet"),
        ("a.pdf", "x"),
        ("a.jsonl", '{"text": "one", "text": "two"}'),
        ("notes.md", "x"),
        (".notes.txt", "x"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=name):
        load(tmp_path if "notes" in name else tmp_path / name)


def test_named_column_is_read_or_missing(tmp_path):
    row = {"prompt": "p", "completion": "c", "text": "t", "review": "r"}
    file = write(tmp_path / "a.jsonl", [row])
    with pytest.warns(UserWarning, match="which are read, and text, review, which are not"):
        assert load(file) == [{"prompt": "p", "completion": "c"}]

    assert load(file, text_column="review") == [{"text": "r"}]

    for columns in ({"prompt_column": "prmpt"}, {"text_column": "t", "prompt_column": "review"}):
        with pytest.raises(DataError, match="required"):
            load(file, **columns)


def test_weights_of_messages_are_said_to_be_unread(tmp_path):
    weighted = [MESSAGES[0], *({**message, "weight": 0} for message in MESSAGES[1:])]
    file = write(tmp_path / "a.jsonl", [{"messages": weighted}, {"messages": MESSAGES}])
    with pytest.warns(DataWarning, match=f"{len(MESSAGES) - 1} messages of .* have a 'weight'"):
        assert len(load(file)) == 2


def test_tables_of_a_folder_have_one_first_line(tmp_path):
    write(tmp_path / "a.csv", "text,n\none,1\n")
    write(tmp_path / "b.csv", "two,2\nthree,3\n")
    with pytest.raises(DataError, match=r"b\.csv have different columns"):
        load(tmp_path)


class Hub:
    """A hub with one data set."""

    def __init__(self, monkeypatch, *splits: str):
        self.splits, self.asked = list(splits), []
        monkeypatch.setattr(datasets, "get_dataset_split_names", self.names)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def names(self, name, config):
        if name != "wikitext":
            raise ConnectionError("couldn't reach the hub")
        return self.splits

    def load(self, name, config, split):
        self.asked.append((name, config, split))
        return [{"text": split}]


@pytest.mark.parametrize(
    "source, split, asked",
    [
        ("wikitext:raw", "train", ("raw", "train")),
        ("wikitext", "validation", (None, "validation")),
        ("wikitext:raw:test", "train", ("raw", "test")),
        ("wikitext:raw:test", "validation", ("raw", "test")),
        ("wikitext::train[:10%]+validation", "train", (None, "train[:10%]+validation")),
    ],
)
def test_split_of_a_hub_data_set_is_read(monkeypatch, source, split, asked):
    hub = Hub(monkeypatch, "train", "validation", "test")
    assert load(source, split) == [{"text": asked[1]}]
    assert hub.asked == [("wikitext", *asked)]
    hub.splits.remove("validation")
    assert load("wikitext", "validation") == [{"text": "test"}]


def test_only_data_sets_without_a_named_split_have_a_validation_split(monkeypatch, tmp_path):
    Hub(monkeypatch, "train", "validation")
    assert sources.has_validation_split("wikitext")
    for source in ("wikitext::train", "numpy-docs", str(tmp_path)):
        assert not sources.has_validation_split(source)


def write_splits(folder: Path) -> Path:
    """A folder as the hub has it: files of splits, and two configurations in its card."""
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.csv\n"
        f"  - split: test\n    path: {name}/test.csv\n"
        for name in ("long", "short")
    )
    write(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    for name in ("long", "short"):
        for split in ("train", "test"):
            write(folder / name / f"{split}.csv", f"text\n{name} {split}\n")
    return folder


def test_split_of_a_local_folder_is_read_by_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        write(tmp_path / "plain" / f"{split}.jsonl", [{"text": split}])
    assert load(f"{tmp_path}/plain::test") == [{"text": "test"}]

    folder = write_splits(tmp_path / "ab")
    assert load(f"{folder}:short:test") == [{"text": "short test"}]
    assert load(f"{folder}:long") == [{"text": "long train"}]

    for wrong, named in ((":long:dev", "dev"), (":test", "cannot read the splits")):
        with pytest.raises(DataError, match=named):
            load(f"{folder}{wrong}")


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("train_english", "test_final"),
        ("e2e-train", "e2e-dev"),
        ("Training", "Testing"),
        ("a_train_1", "a_evaluation"),
        ("TrainData", "TestData"),
        ("train-00000-of-00002", "test-00000-of-00001"),
    ],
)
def test_folder_with_splits_is_not_read_as_one(tmp_path, names):
    for name in names:
        write(tmp_path / f"{name}.jsonl", [{"text": name}])
    with pytest.raises(
        DataError, match=r"would be read together; name one, such as \S+::train, or the file of one"
    ):
        load(str(tmp_path))


def test_files_of_a_split_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path / "train-0.jsonl", [{"text": "a"}])
    for name in ("train-1.jsonl.gz", "train-2.ndjson", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    write(tmp_path / "more" / "a.jsonl", [{"text": "b"}])
    with pytest.warns(DataWarning, match=r": more, train-1.jsonl.gz, train-2.ndjson; "):
        assert load_rows(f"{tmp_path}::train", "train") == [{"text": "a"}]


def test_splits_that_the_library_cannot_tell_apart_are_not_read_as_one(tmp_path, monkeypatch):
    """`datasets` takes the letters of Train.jsonl and Test.jsonl for no split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("Train", "Test"):
        write(tmp_path / "data" / f"{name}.jsonl", [{"text": name}])
    assert load(f"{tmp_path / 'data'}::train") == [{"text": "Train"}]


@pytest.mark.parametrize(
    "name, content",
    [
        ("train.tsv", 'text\tlabel\n"a bird\tx\nthe "end"\ty\n'),
        ("train.csv", "text,label\nNone,007\nnan,7\n"),
        ("training-0.txt", "two\nlines"),
        ("my_train.jsonl", '{"text": "a"}\n{"text": 1, "other": []}\n'),
    ],
)
def test_named_split_is_read_as_the_file_itself(tmp_path, name, content):
    """`datasets` reads quotation marks, numbers and lines in another way, and keeps old rows."""
    write(tmp_path / "test.csv", "text\nother\n")
    for text in (content, content.replace("a", "b").replace("tw", "th")):
        write(tmp_path / name, text)
        os.utime(tmp_path / name, (1_600_000_000, 1_600_000_000))
        assert load_rows(f"{tmp_path}::train", "train") == load_rows(f"{tmp_path / name}", "train")


def test_parts_of_splits_are_those_of_the_library(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", ({"text": f"{name} {i}"} for i in range(10)))

    def texts(part):
        return [row["text"] for row in load(f"{tmp_path}::{part}")]

    assert texts("train[:20%]+test[8:]") == ["train 0", "train 1", "test 8", "test 9"]
    assert texts("test+train") == [f"{name} {i}" for name in ("test", "train") for i in range(10)]
    for wrong in ("dev", "train[x]", "train[:900%]"):
        with pytest.raises(DataError, match=r"no split dev|cannot read"):
            texts(wrong)


@pytest.mark.filterwarnings("ignore:not read in .*assets")
@pytest.mark.parametrize("beside", ["assets/logo.png", "README.md"])
def test_other_files_do_not_decide_what_a_split_is(tmp_path, monkeypatch, beside):
    """Such as a picture of the data set, or a card that names the files of the splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", [{"text": split}])
    (folder / beside).parent.mkdir(exist_ok=True)
    files = "- split: train\n    path: train.jsonl\n"
    card = f"---\nconfigs:\n- config_name: a\n  data_files:\n  {files}---\n"
    (folder / beside).write_text(card)
    assert load(f"{folder}::train") == [{"text": "train"}]


def test_names_that_only_contain_the_letters_of_a_split_are_read(tmp_path):
    for name in ("trains", "contest", "evaluator", "how to train", "test plan"):
        write(tmp_path / f"{name}.jsonl", [{"text": name}])
    with pytest.warns(DataWarning, match=r"named after splits \(how to train.jsonl, trains.jsonl"):
        assert len(load(str(tmp_path))) == 5


@pytest.mark.parametrize(
    "names, part",
    [
        (("train", "holdout"), ""),
        (("train", "gold_test"), ""),
        (("mytrain", "mytest"), ""),
        (("trn", "tst"), ""),
        (("TrainingSet", "TestSet"), ""),
        (("train", "train_old"), "::train"),
    ],
)
def test_files_that_may_be_splits_under_other_names_are_named(tmp_path, names, part):
    for name in names:
        write(tmp_path / f"{name}.jsonl", [{"text": name}])
    first, second = names
    listed = rf"read together, .* \({first}.jsonl, {second}.jsonl\)"
    with pytest.warns(DataWarning, match=listed):
        assert len(load(f"{tmp_path}{part}")) == 2


@pytest.mark.parametrize(
    "source, named",
    [
        ("a.txt::train", "without ::train"),
        ("numpy-docs::train", "without ::train"),
        ("missing:1.txt", "missing:1.txt"),
        ("wikitext", "no split train; it has test"),
        ("numpy-doc", "'numpy-docs'"),
        ("./trian.jsonl", "similar: train.jsonl"),
        ("./nowhere/deep/a.txt", "'nowhere'"),
    ],
)
def test_missing_source_or_split_is_refused(tmp_path, monkeypatch, source, named):
    monkeypatch.chdir(tmp_path)
    Hub(monkeypatch, "test")
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=named):
        load(source)
