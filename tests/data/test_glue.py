"""GLUE's tasks by name: columns, splits, classes in GLUE's order; the hub is not reached, local
files are read.
"""

import datasets
import pytest
from datasets import ClassLabel, Dataset
from folders import write_rows

from qpeft.errors import ConfigError, DataError, DataWarning
from qpeft_lab import RunSettings
from qpeft_lab.data.glue import TASKS
from qpeft_lab.data.names import SourceName, parse_source
from qpeft_lab.data.sources import has_validation_split, load_rows
from qpeft_lab.settings import settings_from
from qpeft_lab.training.tasks import TASK_CLASSES

pytestmark = pytest.mark.filterwarnings("ignore:the base model has no weights for")

# columns, classes and validation split of each task, from the data card of nyu-mll/glue
CARD = {
    "cola": ("sentence", "unacceptable acceptable", "validation"),
    "sst2": ("sentence", "negative positive", "validation"),
    "mrpc": ("sentence1 sentence2", "not_equivalent equivalent", "validation"),
    "qqp": ("question1 question2", "not_duplicate duplicate", "validation"),
    "stsb": ("sentence1 sentence2", "", "validation"),
    "mnli": ("premise hypothesis", "entailment neutral contradiction", "validation_matched"),
    "mnli_mismatched": (
        "premise hypothesis",
        "entailment neutral contradiction",
        "validation_mismatched",
    ),
    "qnli": ("question sentence", "entailment not_entailment", "validation"),
    "rte": ("sentence1 sentence2", "entailment not_entailment", "validation"),
    "wnli": ("sentence1 sentence2", "not_entailment entailment", "validation"),
}
WORDS = ["the", "king", "a", "fox", "queen", "wood", "night", "bird"]


def rows(name, n, shift=0):
    """Rows with GLUE's columns; labels are indices, or numbers."""
    columns, classes, _ = (part.split() for part in CARD[name])
    for i in range(n):
        texts = {
            column: f"{WORDS[(i + shift + k) % 8]} {WORDS[i % 7]}"
            for k, column in enumerate(columns)
        }
        yield {**texts, "label": i % len(classes) if classes else i % 11 / 2, "idx": i}


def write(folder, name, n_train=40, n_validation=12):
    """A folder with the splits of a task, one in two files."""
    folder.mkdir(exist_ok=True)
    for split, n in (
        ("train-00000-of-00002", n_train),
        ("train-00001-of-00002", 4),
        (CARD[name][2], n_validation),
    ):
        write_rows(folder / f"{split}.jsonl", rows(name, n, len(split)))
    write_rows(folder / "test.jsonl", [{**next(rows(name, 1)), "label": -1}])
    return f"glue/{name}:{folder}"


@pytest.fixture
def settings(tiny_encoder, tmp_path):
    def make(data, **changes) -> RunSettings:
        of_run = {"model": str(tiny_encoder), "data": data, "out": str(tmp_path / "run")}
        return settings_from(RunSettings, of_run | changes)

    return make


def read(settings):
    settings.check()
    return TASK_CLASSES[settings.task](settings)


@pytest.mark.parametrize("name", CARD)
def test_name_gives_task_columns_splits_and_classes(name, settings, tmp_path):
    task = read(settings(write(tmp_path / "data", name)))
    assert task.settings.task == ("text-regression" if name == "stsb" else "text-classification")
    assert list(task.labels) == (CARD[name][1].split() or ["LABEL_0"])
    assert len(task.train) == 44
    assert len(task.evaluation) == 12
    assert [label for _, label in task.evaluation] == [row["label"] for row in rows(name, 12)]

    tokenizer = task.tokenizer
    columns = CARD[name][0].split()
    texts = [[row[column] for column in columns] for row in rows(name, 12, len(CARD[name][2]))]
    expected = [tokenizer(*pair)["input_ids"] for pair in texts]

    assert [text["input_ids"].tolist() for text, _ in task.evaluation] == expected


def test_file_with_another_name_than_glue_s_splits_is_named(settings, tmp_path):
    source = write(tmp_path / "data", "sst2")
    (tmp_path / "data" / "validation.jsonl").rename(tmp_path / "data" / "dev.jsonl")
    with pytest.warns(DataWarning, match=r"not read in .*: dev.jsonl.*rename"):
        read(settings(source))


def test_hub_is_asked_for_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        made = Dataset.from_list(list(rows("mnli", 4)))
        return made.cast_column("label", ClassLabel(names=CARD["mnli"][1].split()))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = ["train", "validation_matched", "validation_mismatched"]
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *_: [*splits, "test_matched", "test_mismatched"]
    )
    found = load_rows("glue/mnli", "train")

    assert [row["label"] for row in found[:3]] == ["entailment", "neutral", "contradiction"]

    load_rows("glue/mnli", "validation")
    load_rows("glue/mnli_mismatched", "validation")
    assert asked == [("nyu-mll/glue", "mnli", split) for split in splits]
    assert has_validation_split("glue/mnli")
    assert parse_source("glue/sst2") == SourceName("nyu-mll/glue", "sst2", None, TASKS["sst2"])


@pytest.mark.parametrize(
    "source, changes, named",
    [
        ("glue/mrcp", {}, "'mrcp'; did you mean 'mrpc"),
        ("glue/sts-b", {}, "'sts-b'; did you mean 'stsb"),
        ("glue/mnli_matched:here", {}, "'mnli_matched'; did you mean 'mnli"),
        ("glue/cola", {"text_column": "other"}, "text_column"),
        ("glue/cola", {"text_pair_column": "other"}, "text_pair_column"),
        ("glue/cola", {"label_column": "other"}, "label_column"),
        ("glue/cola", {"task": "image-classification"}, "task"),
    ],
)
def test_unknown_task_or_contradicting_option_is_refused(settings, source, changes, named):
    with pytest.raises(ConfigError, match=named):
        settings(source, **changes).check()


@pytest.mark.parametrize("label", [-1, "2", "other", True, 0.5])
def test_label_out_of_range_is_named_with_its_row(tmp_path, label):
    lines = [*rows("mrpc", 2), {**next(rows("mrpc", 1)), "label": label}]
    file = write_rows(tmp_path / "train.jsonl", lines)
    with pytest.raises(DataError, match="row 3"):
        load_rows(f"glue/mrpc:{file}", "train")
    with pytest.raises(DataError, match="validation_matched"):
        load_rows(f"glue/mnli:{tmp_path}", "validation")
