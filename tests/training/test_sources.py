import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from qpeft.errors import DataError
from qpeft.training import sources
from qpeft.training.source_names import parse_source
from qpeft.training.sources import Columns, load_examples


def load(source, **columns):
    return load_examples(str(source), "train", Columns(**columns))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_text_file_is_one_document(tmp_path):
    assert load(write(tmp_path / "a.txt", "one\n\ntwo\nünd\n")) == [{"text": "one\n\ntwo\nünd\n"}]


def test_jsonl_json_csv_and_parquet_give_the_same_rows(tmp_path):
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]
    expected = [{"text": "one"}, {"text": "two"}]
    assert load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))) == expected
    assert load(write(tmp_path / "a.json", json.dumps(rows))) == expected
    assert load(write(tmp_path / "b.json", json.dumps(["one", "two"]))) == expected
    assert load(write(tmp_path / "a.csv", "text,n\none,1\ntwo,2\n")) == expected
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet") == expected
    words = ["null", "NA", "None", "nan"]
    assert load(write(tmp_path / "b.csv", "text\n" + "\n".join(words))) == [{"text": word} for word in words]


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_path_is_literal_and_no_pattern(tmp_path, suffix):
    def put(name, text):
        file = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            parquet.write_table(pyarrow.table({"text": [text]}), file)
        else:
            write(file, text if suffix == "txt" else f"text\n{text}\n")
        return file

    put("data1", "other")
    put("ab", "third")
    bracket, star = put("data[1]", "mine"), put("a*", "second")
    assert load(bracket) == [{"text": "mine"}]
    assert load(star) == [{"text": "second"}]
    assert [row["text"] for row in load(tmp_path)] == ["second", "third", "other", "mine"]


def test_files_of_a_folder_are_read_in_order_of_name(tmp_path):
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.jsonl", '{"text": "first"}')
    write(tmp_path / "README.md", "not data")
    assert load(tmp_path) == [{"text": "first"}, {"text": "second"}]


def test_prompts_and_completions_under_other_names(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"question": "Q", "answer": "A", "text": "T"}')
    assert load(path, prompt="question", completion="answer") == [{"prompt": "Q", "completion": "A"}]
    assert load(path) == [{"text": "T"}]


def test_empty_rows_are_skipped_with_a_warning(tmp_path):
    with pytest.warns(
        UserWarning, match=r"1 of 2 rows of .*a\.csv have nothing in column 'text' \(the first is row 2\)"
    ):
        assert load(write(tmp_path / "a.csv", "text,n\none,1\n,2\n")) == [{"text": "one"}]
    path = write(tmp_path / "b.jsonl", '{"prompt": "", "completion": "A"}\n{"prompt": "Q", "completion": ""}')
    with pytest.warns(
        UserWarning, match=r"1 of 2 rows of .* have nothing in column 'completion' \(the first is row 2\)"
    ):
        assert load(path) == [{"prompt": "", "completion": "A"}]


def test_empty_rows_and_lines_can_be_kept(tmp_path):
    columns = Columns(keep_empty=True, by_line=True)
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": " one\\n"}\n{"text": null}\n')
    assert load_examples(str(path), "train", columns) == [{"text": ""}, {"text": " one\n"}, {"text": ""}]
    path = write(tmp_path / "a.txt", "one\n\n two\x0b\n")
    assert load_examples(str(path), "train", columns) == [{"text": "one"}, {"text": ""}, {"text": " two\x0b"}]
    with pytest.raises(DataError, match=r"2 of 2 rows .*; give rows with a text to learn"):
        load_examples(str(write(tmp_path / "b.csv", 'text,n\n"",1\n,2\n')), "train", columns)


@pytest.mark.parametrize("names", [("a.jsonl", "a.jsonl"), ("a.jsonl", "b.jsonl")], ids=["one file", "two files"])
def test_rows_in_another_format_are_left_out_and_counted(tmp_path, names):
    for name, row in zip(names, ({"text": "T"}, {"prompt": "Q", "completion": "A"}), strict=True):
        with (tmp_path / name).open("a") as file:
            file.write((json.dumps(row) + "\n") * 10)
    with pytest.warns(UserWarning, match=r"10 of 20 rows of .* have nothing in column '\w+'.*; they are left out"):
        assert len(load(tmp_path)) == 10


def test_conversations_without_an_answer_are_left_out_and_counted(tmp_path):
    question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    conversations = [[question], [question, answer], [], [question, {**answer, "content": ""}]]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"messages": messages}) for messages in conversations))
    with pytest.warns(UserWarning, match=r"3 of 4 rows of .* have no message of an assistant \(the first is row 1\)"):
        assert load(path) == [{"messages": [question, answer]}]


def test_built_in_texts_are_found_by_name(monkeypatch):
    monkeypatch.setitem(sources.BUILT_IN, "two-texts", "texts_for_this_test:two")
    monkeypatch.setattr(
        sources, "import_module", lambda name: type("Module", (), {"two": staticmethod(lambda: ["one", "two"])})
    )
    assert load("two-texts", text="body") == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt is empty"),
        ("a.txt", "\n \n\t\n", "a.txt has nothing but white space; give rows with a text to learn"),
        ("a.tsv", "\n \n\t\n", "a.tsv is empty"),
        ("a.tsv", "\ufeff", "a.tsv is empty"),
        ("a.tsv", "text\tn\n", "a.tsv is empty"),
        ("a.csv", "\n \n", "a.csv as csv: No columns"),
        ("a.csv", "text,n\n", "a.csv is empty"),
        ("a.jsonl", "\n \n", "a.jsonl is empty"),
        (
            "a.csv",
            "body,n\none,1\n",
            "has the columns body, n; required: 'text', or 'prompt' and 'completion', or 'messages'",
        ),
        ("a.csv", "text,n\n,1\n,2\n", "a.csv have nothing in column 'text' (the first is row 1)"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "hi"}]}\n' * 30,
            "have no message of an assistant (the first is row 1); give rows with a text to learn",
        ),
        ("a.jsonl", '{"messages": ["hi"]}', "row 1: the message hi lacks 'role' or 'content' as text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "the message {'role': 'user'} lacks 'role' or 'content'"),
        ("a.jsonl", '{"text": ["list"]}', "row 1: column 'text' has a list, not a str"),
        ("a.jsonl", '{"text": "one"', "as json:"),
        ("a.jsonl", '{"text": "one"}\n{"text": 2}', "row 2: column 'text' has a int, not a str"),
        ("a.json", '[{"text": "one"}, {"text": 2}]', "row 2: column 'text' has a int, not a str"),
        ("a.jsonl", '{"text": "a\\ud800"}', "row 1 is not valid text (surrogates not allowed)"),
        ("a.txt", b"\xfcnd", "a.txt as text"),
        ("a.parquet", "no parquet", "as parquet:"),
        ("a.pdf", "x", "its suffix is '.pdf'; files must end in one of .txt, .json, .jsonl, .csv, .parquet"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as refused:
        load(tmp_path / name)
    assert message in str(refused.value)


def test_missing_file_names_similar_files(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"has no 'trian.jsonl'; similar: train.jsonl"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"no file or folder .*: .* has no 'nowhere'"):
        load(tmp_path / "nowhere" / "deep" / "a.txt")


def test_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="it contains nothing; files must end in"):
        load(tmp_path)
    write(tmp_path / "notes.md", "x")
    with pytest.raises(DataError, match=r"it contains notes.md; files must end in"):
        load(tmp_path)


class Hub:
    """A hub with one data set."""

    def __init__(self, monkeypatch, *splits: str):
        import datasets

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


def test_hub_data_set_is_read_with_its_configuration(monkeypatch):
    hub = Hub(monkeypatch, "train", "test")
    assert load("wikitext:wikitext-2-raw-v1") == [{"text": "train"}]
    assert load_examples("wikitext", "validation", Columns()) == [{"text": "test"}]
    assert hub.asked == [("wikitext", "wikitext-2-raw-v1", "train"), ("wikitext", None, "test")]


def test_named_split_is_read_for_training_and_evaluation(monkeypatch):
    hub = Hub(monkeypatch, "train", "validation", "test")
    for split in ("train", "validation"):
        assert load_examples("wikitext:wikitext-2-raw-v1:test", split, Columns()) == [{"text": "test"}]
    assert hub.asked == [("wikitext", "wikitext-2-raw-v1", "test")] * 2
    assert load("wikitext::train[:10%]+validation") == [{"text": "train[:10%]+validation"}]
    assert hub.asked[-1] == ("wikitext", None, "train[:10%]+validation")
    assert sources.has_validation_split("wikitext")
    assert not sources.has_validation_split("wikitext::train")


def write_splits(folder: Path) -> Path:
    """A folder as the hub has it: files of splits, and two configurations in its card."""
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.csv\n"
        f"  - split: test\n    path: {name}/test.csv\n"
        for name in ("long", "short")
    )
    write(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    for name in ("long", "short"):
        (folder / name).mkdir()
        for split in ("train", "test"):
            write(folder / name / f"{split}.csv", f"text\n{name} {split}\n")
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("cache")
def test_split_of_a_local_folder_is_read_by_datasets(tmp_path):
    (tmp_path / "plain").mkdir()
    for split in ("train", "test"):
        write(tmp_path / "plain" / f"{split}.jsonl", json.dumps({"text": split}))
    assert load(f"{tmp_path}/plain::test") == [{"text": "test"}]
    assert load(tmp_path / "plain") == [{"text": "test"}, {"text": "train"}]  # without a split, every file
    (tmp_path / "a:b").mkdir()
    folder = write_splits(tmp_path / "a:b")
    assert load(f"{folder}:short:test") == [{"text": "short test"}]
    assert load(f"{folder}:long") == [{"text": "long train"}]
    with pytest.raises(DataError, match=r"has no split dev; it has train, test"):
        load(f"{folder}:long:dev")
    with pytest.raises(DataError, match=r"cannot read the splits of folder .*A split follows a second colon"):
        load(f"{folder}:test")


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("org/name", "org/name", None, None),
        ("org/name:config", "org/name", "config", None),
        ("org/name:config:train[:5%]", "org/name", "config", "train[:5%]"),
        ("name::test", "name", None, "test"),
        ("C:\\data\\tales:1.txt", "C:\\data\\tales:1.txt", None, None),
        ("C:\\data::test", "C:\\data", None, "test"),
        ("c::test", "c", None, "test"),
        ("missing:1.txt", "missing:1.txt", None, None),
    ],
)
def test_source_is_a_name_a_configuration_and_a_split(source, name, config, split):
    assert parse_source(source) == (name, config, split, None)
    assert parse_source(source).is_local == ("data" in name or "missing" in name)


def test_path_may_contain_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tales: one.txt", "one")
    assert load("tales: one.txt") == [{"text": "one"}]
    (tmp_path / "a:b:c").mkdir()
    assert parse_source("a:b:c:config:split") == ("a:b:c", "config", "split", None)
    assert parse_source("a:b:c") == ("a:b:c", None, None, None)


def test_sources_without_splits_refuse_one(tmp_path):
    file = write(tmp_path / "a.txt", "one")
    for source in (f"{file}::train", "numpy-docs::train"):
        with pytest.raises(DataError, match="has no configurations and no splits; name it without ::train"):
            load(source)


def test_only_a_hub_data_set_has_a_validation_split(monkeypatch, tmp_path):
    Hub(monkeypatch, "train", "validation")
    assert sources.has_validation_split("wikitext")
    assert not sources.has_validation_split("numpy-docs")
    assert not sources.has_validation_split(str(tmp_path))


def test_missing_hub_data_set_is_refused(monkeypatch):
    Hub(monkeypatch, "test")
    with pytest.raises(DataError, match="wikitext has no split train; it has test"):
        load("wikitext")
    with pytest.raises(DataError, match=r"couldn't reach the hub\. Did you mean 'numpy-docs'\?"):
        load("numpy-doc")
