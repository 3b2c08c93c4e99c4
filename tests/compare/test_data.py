"""The split of the data: complete, without overlap, equal prompts and documents together."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qpeft.compare.data import split_data, test_references
from qpeft.compare.study_file import load_study
from qpeft.errors import ConfigError, DataError

test_references.__test__ = False  # pytest takes it for a test


def study(**changes):
    return load_study("survey", {"generation": None, **changes})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_parts_share_no_document_and_lose_none(tmp_path):
    data = tmp_path / "texts.jsonl"
    texts = [f"document number {n}" for n in range(100)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    splits = split_data(study(data=str(data)), tmp_path / "study")
    parts = [[row["text"] for row in rows(path)] for path in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [90, 5, 5]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(texts)


def test_empty_rows_are_kept_where_rows_are_padded(tmp_path):
    data = tmp_path / "texts.jsonl"
    texts = [f"document number {n}" if n % 3 else "" for n in range(100)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    splits = split_data(study(data=str(data), **{"training.pad_rows": True}), tmp_path / "study")
    parts = [[row["text"] for row in rows(path)] for path in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [90, 5, 5]
    assert parts[1] == texts[19::20]
    with pytest.raises(ConfigError, match="pad_rows True has changed since"):
        split_data(study(data=str(data)), tmp_path / "study")


def test_empty_rows_are_no_copies_of_each_other(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in (f"{name} 1", "", "")))
    named = {
        part: str(tmp_path / f"{name}.jsonl") for part, name in (("data", "a"), ("eval_data", "b"), ("test_data", "c"))
    }
    assert split_data(study(**named, **{"training.separator": ""}), tmp_path / "study").notes == []


def glue_folder(folder, columns, n_classes):
    """A task of GLUE in two files: 100 rows to train on, 9 to validate."""
    folder.mkdir()
    for split, n in (("train", 100), ("validation", 9)):
        made = [{column: f"{split} {column} {i}" for column in columns} for i in range(n)]
        labels = [i % n_classes if n_classes else i / 4 for i in range(n)]
        lines = [json.dumps({**row, "label": label}) for row, label in zip(made, labels, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(("task", "metric", "n_classes"), [("mrpc", "test_f1", 2), ("stsb", "test_pearson", 0)])
def test_validation_split_of_glue_is_test_data(tmp_path, task, metric, n_classes):
    folder = glue_folder(tmp_path / "data", ("sentence1", "sentence2"), n_classes)
    asked = study(data=f"glue/{task}:{folder}")
    assert asked.chosen_metric == metric
    splits = split_data(asked, tmp_path / "study")
    train, validation, test = (rows(path) for path in (splits.train, splits.validation, splits.test))
    assert [len(part) for part in (train, validation, test)] == [95, 5, 9]
    assert [row["text"] for row in test] == [f"validation sentence1 {i}" for i in range(9)]
    assert [row["text_pair"] for row in test] == [f"validation sentence2 {i}" for i in range(9)]
    # classes by their index: a run sorts them, and their names would be in another order
    assert [row["label"] for row in test] == [i % n_classes if n_classes else i / 4 for i in range(9)]
    assert "its split validation is the test data here" in splits.notes[0]
    with pytest.raises(ConfigError, match="unknown task of GLUE 'mrcp'; did you mean 'mrpc'"):
        study(data="glue/mrcp")
    with pytest.raises(ConfigError, match="text_column is 'a', but glue/mrpc has 'sentence1'; leave it out"):
        study(data="glue/mrpc", **{"training.text_column": "a"})


def test_single_text_is_split_between_words(tmp_path):
    data = tmp_path / "tale.txt"
    text = " ".join(f"word{n}" for n in range(4000))
    data.write_text(text)
    splits = split_data(study(data=str(data)), tmp_path / "study")
    parts = [rows(path)[0]["text"] for path in (splits.train, splits.validation, splits.test)]
    assert "".join(parts) == text
    assert [len(part) / len(text) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert all(part.split()[0] in text.split() for part in parts)


@pytest.mark.parametrize("key", ["prompt", "text"])
def test_equal_documents_and_answers_to_one_prompt_stay_together(tmp_path, key):
    data = tmp_path / "rows.jsonl"
    extra = {"completion": "answer"} if key == "prompt" else {}
    data.write_text("".join(json.dumps({key: f"meaning {n // 3}", **extra}) + "\n" for n in range(180)))
    splits = split_data(study(data=str(data)), tmp_path / "study")
    parts = [{row[key] for row in rows(path)} for path in (splits.train, splits.validation, splits.test)]
    assert not (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
    assert {len(answers) for answers in test_references(splits.test).values()} == ({3} if extra else set())


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\r\n"])
def test_references_of_texts_with_line_separators(tmp_path, separator):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"one{separator}{n}", "completion": f"a{separator}b"} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = split_data(study(data=str(data)), tmp_path / "study")
    assert test_references(splits.test) == {f"one{separator}{n}": [f"a{separator}b"] for n in (9, 29, 49)}


def test_parts_contain_all_classes(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (120, 4, 4, 3), dtype=np.uint8), np.arange(120) % 3
    np.savez(tmp_path / "all.npz", images=images, labels=labels, names=np.array(["ape", "bee", "cat"]))
    splits = split_data(study(data=str(tmp_path / "all.npz"), task="image-classification"), tmp_path / "study")
    for path, n in ((splits.train, 108), (splits.validation, 6), (splits.test, 6)):
        with np.load(path) as found:
            assert len(found["images"]) == n
            assert set(found["names"][found["labels"]]) == {"ape", "bee", "cat"}


def test_given_validation_and_test_data_are_not_split(tmp_path):
    for name, n in (("a", 60), ("b", 5), ("c", 7)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(n)))
    asked = study(
        data=str(tmp_path / "a.jsonl"), eval_data=str(tmp_path / "b.jsonl"), test_data=str(tmp_path / "c.jsonl")
    )
    splits = split_data(asked, tmp_path / "study")
    assert [len(rows(path)) for path in (splits.train, splits.validation, splits.test)] == [60, 5, 7]


def test_named_splits_of_a_data_set_are_the_parts(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (folder := tmp_path / "tales").mkdir()
    for split, n in (("train", 60), ("validation", 5), ("test", 7)):
        texts = (json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(n))
        (folder / f"{split}.jsonl").write_text("".join(texts))
    named = {"data": f"{folder}::train", "eval_data": f"{folder}::validation", "test_data": f"{folder}::test"}
    splits = split_data(study(**named), tmp_path / "study")
    assert [len(rows(path)) for path in (splits.train, splits.validation, splits.test)] == [60, 5, 7]
    assert rows(splits.test)[0] == {"text": "test 0"}
    with pytest.raises(ConfigError, match=r"test_data .*tales::test.* has changed since"):
        split_data(study(**{**named, "test_data": f"{folder}::test[:3]"}), tmp_path / "study")


@pytest.mark.parametrize("part", ["eval_data", "test_data"])
def test_copy_of_the_training_data_is_refused_as_held_out_data(tmp_path, part):
    texts = [{"text": f"document {n}\n"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "b.json").write_text(json.dumps([{"text": f" {row['text']}"} for row in texts[:30]]))
    with pytest.raises(DataError, match=r"the (validation|test) data are a copy or a part of the training data"):
        split_data(study(data=str(tmp_path / "a.jsonl"), **{part: str(tmp_path / "b.json")}), tmp_path / "study")
    assert not (tmp_path / "study" / "data").exists()


@pytest.mark.parametrize("cut", [slice(1000), slice(777, 1500)])
def test_part_of_the_training_text_is_refused_as_test_data(tmp_path, cut):
    text = "".join(f"line {n} of a long tale that nobody would write twice\n" for n in range(80))
    (tmp_path / "all.txt").write_text(text)
    (tmp_path / "part.txt").write_text(text[cut])
    with pytest.raises(DataError, match="the test data are a copy or a part of the training data"):
        split_data(study(data=str(tmp_path / "all.txt"), test_data=str(tmp_path / "part.txt")), tmp_path / "study")


def test_rows_that_two_parts_share_are_counted(tmp_path):
    for name, start in (("a", 0), ("b", 55)):
        rows_ = [{"text": f"document {n}"} for n in range(start, start + 60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    asked = study(data=str(tmp_path / "a.jsonl"), test_data=str(tmp_path / "b.jsonl"))
    with pytest.warns(UserWarning, match="5 of 60 rows of the test data are also in the training data; remove them"):
        split_data(asked, tmp_path / "study")
    assert split_data(asked, tmp_path / "study").notes == [
        "5 of 60 rows of the test data are also in the training data: results on them describe learned text."
    ]


def test_parts_of_a_text_that_two_parts_share_are_counted(tmp_path):
    lines = [f"line {n} of a long tale that nobody would write twice\n" for n in range(80)]
    (tmp_path / "all.txt").write_text("".join(lines))
    (tmp_path / "end.txt").write_text("".join(lines[-20:]) + "\nand one more line, which no other text of these has")
    asked = study(data=str(tmp_path / "all.txt"), test_data=str(tmp_path / "end.txt"))
    with pytest.warns(UserWarning, match="20 of 21 long lines of the test data are also in the training data"):
        split_data(asked, tmp_path / "study")


def test_second_call_returns_the_same_files(tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(40)))
    first = split_data(study(data=str(data)), tmp_path / "study")
    written = first.train.stat().st_mtime_ns
    assert split_data(study(data=str(data)), tmp_path / "study") == first
    assert first.train.stat().st_mtime_ns == written


def test_calls_at_once_return_the_same_files(tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(40)))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: split_data(study(data=str(data)), tmp_path / "study"), range(4)))
    assert found == [found[0]] * 4
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["data"]


def test_changed_data_or_columns_are_rejected(tmp_path):
    data = tmp_path / "texts.jsonl"
    rows = "".join(json.dumps({"a": f"text {n}", "b": f"other {n}"}) + "\n" for n in range(40))
    data.write_text(rows)
    split_data(study(data=str(data), **{"training.text_column": "a"}), tmp_path / "study")
    with pytest.raises(ConfigError, match="text_column 'a' has changed since"):
        split_data(study(data=str(data), **{"training.text_column": "b"}), tmp_path / "study")
    data.write_text(rows + rows)
    with pytest.raises(ConfigError, match="the content of its data has changed since"):
        split_data(study(data=str(data), **{"training.text_column": "a"}), tmp_path / "study")


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_data_folder_without_a_valid_record_is_rejected(tmp_path, content):
    (tmp_path / "study" / "data").mkdir(parents=True)
    if content is not None:
        (tmp_path / "study" / "data" / "split.json").write_text(content)
    with pytest.raises(ConfigError, match="was not written by a study"):
        split_data(study(), tmp_path / "study")


def test_missing_label_column_lists_the_columns(tmp_path):
    data = tmp_path / "texts.csv"
    data.write_text("text,mood\nfine,good\n")
    with pytest.raises(DataError, match=r"has the columns text, mood, and no 'label'.*training\.label_column"):
        split_data(study(data=str(data), task="text-classification"), tmp_path / "study")


def test_too_little_data_is_rejected(tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(DataError, match="leaves nothing for validation"):
        split_data(study(data=str(data)), tmp_path / "study")
