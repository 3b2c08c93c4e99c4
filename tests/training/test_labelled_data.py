import json
import shutil

import pytest

from qpeft.errors import ConfigError, DataError, InputError
from qpeft.training import TrainSettings
from qpeft.training.sources import load_rows
from qpeft.training.tasks.labelled_data import collect_labels, hold_out, label_name
from qpeft.training.tasks.text_classification import TextClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore:the base model has no weights for"),
    pytest.mark.filterwarnings("ignore:.* are also training data"),
]


@pytest.fixture
def read(tiny_encoder, tmp_path):
    """Read texts with their classes as a run does."""

    def make(data, **settings) -> TextClassification:
        chosen = {"task": "text-classification", "model": str(tiny_encoder), "out": str(tmp_path / "run"), **settings}
        return TextClassification(TrainSettings(data=str(data), **chosen))

    return make


def words(task: TextClassification, examples) -> list[tuple[str, str]]:
    """The examples as texts and names of classes."""
    decode = task.tokenizer.decode
    return [(decode(ids, skip_special_tokens=True), task.labels[index]) for (ids, _), index in examples]


def test_tables_in_all_formats_give_the_same_examples(read, tmp_path):
    rows = [("the king sings", "b"), ("a fox", "a"), ("the queen", "b"), ("wood at night", "a")]
    forms = {
        "bare.tsv": "".join(f"{text}\t{name}\n" for text, name in rows),
        "headed.tsv": "label\ttext\n" + "".join(f"{name}\t{text}\n" for text, name in rows),
        "table.csv": "text,label\n" + "".join(f"{text},{name}\n" for text, name in rows),
        "lines.jsonl": "".join(json.dumps({"text": text, "label": name}) + "\n" for text, name in rows),
    }
    hashes = set()
    for file, content in forms.items():
        (tmp_path / file).write_text(content)
        task = read(tmp_path / file, eval_data=str(tmp_path / file))
        assert task.labels == ("a", "b")
        assert words(task, task.train) == words(task, task.evaluation) == rows
        hashes.add(task.sha256())
    assert len(hashes) == 1


def test_columns_with_other_names_are_read(read, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"s": "the king", "c": 1}\n{"s": "a fox", "c": 0}\n' * 2)
    task = read(tmp_path / "x.jsonl", text_column="s", label_column="c")
    assert words(task, task.train) == [("the king", "1"), ("a fox", "0")]


def test_quotation_marks_in_a_tsv_are_kept(tmp_path):
    (tmp_path / "x.tsv").write_text('a "b\tc" d\t1\r\n')
    with pytest.raises(DataError, match=r"line 1: expected 2 tab-separated fields \(text, label\), got 3"):
        load_rows(str(tmp_path / "x.tsv"), "train", ("text", "label"))
    (tmp_path / "x.tsv").write_text('a "b\t1\r\n\nc" d\t0')
    assert load_rows(str(tmp_path / "x.tsv"), "train", ("text", "label")) == [
        {"text": 'a "b', "label": "1"},
        {"text": 'c" d', "label": "0"},
    ]


def test_tsv_for_a_language_model_has_a_header(tmp_path):
    (tmp_path / "x.tsv").write_text("number\ttext\n1\tthe king\n")
    assert load_rows(str(tmp_path / "x.tsv"), "train") == [{"number": "1", "text": "the king"}]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["10", "9", "10", "-1"], ("-1", "9", "10")),
        (["pos", "neg"], ("neg", "pos")),
        (["2", "10", "x"], ("10", "2", "x")),
        (["1", "01"], ("01", "1")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
    ],
)
def test_classes_are_sorted_by_value_or_name(found, names):
    assert collect_labels(found, "data", ()) == names


def test_order_of_a_base_with_the_same_classes_is_kept():
    assert collect_labels(["neg", "pos"], "data", ("pos", "neg")) == ("pos", "neg")
    assert collect_labels(["neg", "pos"], "data", ("pos", "neg", "none")) == ("neg", "pos")


def test_labels_are_integers_or_names():
    assert [label_name(value, "row 1") for value in (3, "3", 3.0, " a ", True)] == ["3", "3", "3", "a", "True"]
    for value in (None, "", "  ", 0.5, float("nan"), ["a"]):
        with pytest.raises(DataError, match="row 7: the label is"):
            label_name(value, "row 7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "class": 1}\n', "has the columns text, class, but no 'label'; set label_column"),
        ('{"txt": "a", "label": 1}\n', "has the columns txt, label, but no 'text'; set text_column"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n', "row 2: the label is nothing"),
        ('{"text": 5, "label": 1}\n{"text": 6, "label": 0}\n', "row 1: column 'text' has a int, not a str"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', "has only the class '1'"),
        ('{"text": "", "label": 1}\n{"text": " ", "label": 0}\n', "has no example with a text"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', "has only one example of each class"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_unusable_rows_are_refused(read, tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "x.jsonl")
    assert message in str(refused.value)


def test_unknown_label_is_refused_by_name(read, tmp_path):
    (tmp_path / "train.tsv").write_text("a\tgood\nthe\tbad\n")
    (tmp_path / "dev.tsv").write_text("a\tgood\nthe\tfine\n")
    with pytest.raises(DataError, match=r"dev.tsv has the label 'fine', not one of the 2 .*\(bad, good\)"):
        read(tmp_path / "train.tsv", eval_data=str(tmp_path / "dev.tsv"))


def test_rows_without_a_text_are_left_out_and_counted(read, tmp_path):
    (tmp_path / "x.tsv").write_text("a\t1\n \t0\nthe\t0\nfox\t1\nking\t0\n")
    with pytest.warns(UserWarning, match=r"1 of 5 rows of .* have no text"):
        task = read(tmp_path / "x.tsv")
    assert len(task.train) + len(task.evaluation) == 4


def test_texts_are_truncated_before_their_last_special_token(read, tmp_path):
    (tmp_path / "x.tsv").write_text("a fox went into the wood\t1\nthe king\t0\n" * 2)
    task = read(tmp_path / "x.tsv", seq_len=5)
    long, short = task.train[0][0].ids, task.train[1][0].ids
    assert (len(long), len(short)) == (5, 4)
    assert long[-1] == task.tokenizer.sep_token_id


def test_length_beyond_the_tokenizer_is_refused(read, tiny_encoder, opinion_files, tmp_path):
    with pytest.raises(ConfigError, match="seq_len=65 is longer than the model's context of 64"):
        read(opinion_files[0], seq_len=65)
    short = shutil.copytree(tiny_encoder, tmp_path / "short")
    settings = json.loads((short / "tokenizer_config.json").read_text())
    (short / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 8}))
    with pytest.raises(ConfigError, match="seq_len=9 is longer than the 8 tokens that the tokenizer allows"):
        read(opinion_files[0], model=str(short), seq_len=9)
    assert max(len(text.ids) for text, _ in read(opinion_files[0], model=str(short)).train) == 8


def test_padding_token_that_the_model_lacks_is_not_used(read, tiny_model, opinion_files, tmp_path):
    from transformers import AutoTokenizer

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
    assert (train, held_out) == ([(1, "a"), (2, "b"), (4, "c")], [(3, "a")])  # of a small class the last


def test_number_of_evaluated_examples_is_limited(read, opinion_files):
    train, dev = map(str, opinion_files)
    assert len(read(train, eval_data=dev).evaluation) == 40
    assert len(read(train, eval_data=dev, eval_blocks=0).evaluation) == 40
    few = read(train, eval_data=dev, eval_blocks=7)
    assert len(few.evaluation) == 7
    assert few.sha256() != read(train, eval_data=dev).sha256()


def test_hash_depends_on_texts_classes_and_split(read, tmp_path):
    def sha(*rows, **settings):
        (tmp_path / "x.tsv").write_text("".join(f"{text}\t{name}\n" for text, name in rows))
        return read(tmp_path / "x.tsv", **settings).sha256()

    rows = [("a fox", "1"), ("the king", "0"), ("a queen", "1"), ("the wood", "0")]
    assert sha(*rows) == sha(*rows)
    others = [
        sha(*rows[::-1]),
        sha(*rows[:3], ("the bird", "0")),
        sha(*rows[:3], ("the wood", "1")),
        sha(*[(text, f"c{name}") for text, name in rows]),
        sha(*rows, seq_len=3),
        sha(*rows, eval_data=str(tmp_path / "x.tsv")),
    ]
    assert len({sha(*rows), *others}) == 7


class ClassLabel:
    names = ("neg", "pos")


class HubSet(list):
    def __init__(self, rows):
        super().__init__(rows)
        self.features = {"text": object(), "label": ClassLabel()}


def test_class_names_of_a_hub_data_set_are_used(monkeypatch):
    import datasets

    rows = HubSet([{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": -1}])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [row["label"] for row in load_rows("someone/opinions", "train")] == ["pos", "neg", None]


def test_base_without_a_classifier_is_refused_before_reading_data(tmp_path):
    from transformers import VitsConfig

    VitsConfig().save_pretrained(tmp_path / "speech")
    settings = TrainSettings(
        task="text-classification", model=str(tmp_path / "speech"), data="nowhere.tsv", out=str(tmp_path / "run")
    )
    with pytest.raises(InputError, match="a base of type vits cannot be trained for text-classification"):
        TextClassification(settings)


def test_header_with_other_names_is_refused(read, tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("sentence\tclass\n" + "so good\tpos\nso bad\tneg\n" * 3)
    with pytest.raises(DataError, match="the first line, 'sentence' and 'class', looks like a header"):
        read(file)
