"""The split of the data: complete, without overlap, equal prompts and documents together."""

from collections import Counter

import datasets
import numpy as np
import pytest
from folders import read_rows, write_rows

from qpeft.errors import ConfigError, DataError
from qpeft_lab.compare.data import split_data
from qpeft_lab.compare.study import load_study
from qpeft_lab.data.images import load_images, write_images
from qpeft_lab.files import locked


def write(path, rows):
    return str(write_rows(path, rows))


@pytest.fixture
def split(tmp_path):
    """Split the data of a study; the rows of each part, the record."""

    def make(**changes):
        named = {
            name if name == "test_data" else f"run.{name}": value for name, value in changes.items()
        }
        found = split_data(load_study("survey", {"generation": None, **named}), tmp_path / "study")
        return [read_rows(path) for path in found[0].values()], found

    return make


@pytest.mark.parametrize("pads", [False, True])
def test_parts_share_no_document_and_lose_none(split, tmp_path, pads):
    texts = [f"document number {n}" if n % 3 or not pads else "" for n in range(100)]
    data = write(tmp_path / "texts.jsonl", ({"text": text} for text in texts))
    parts, found = split(data=data, pad_rows=pads)

    assert [len(part) for part in parts] == [90, 5, 5]
    assert [row["text"] for row in parts[1]] == texts[19::20]
    assert sorted(row["text"] for part in parts for row in part) == sorted(texts)

    files, _, notes = found
    assert notes == []

    was = files["train"].stat().st_mtime_ns
    assert split(data=data, pad_rows=pads)[1] == found  # the same files
    assert files["train"].stat().st_mtime_ns == was


def test_single_text_is_split_between_words(split, tmp_path):
    text = " ".join(f"word{n}" for n in range(4000))
    (tmp_path / "tale.txt").write_text(text)
    parts = [part[0]["text"] for part in split(data=str(tmp_path / "tale.txt"))[0]]
    assert "".join(parts) == text
    assert [len(part) / len(text) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert all(part.split()[0] in text.split() for part in parts)


def test_copies_of_few_documents_are_in_no_other_part(split, tmp_path):
    documents = [" ".join(f"d{n}w{i}" for i in range(200)) for n in range(15)]
    data = write(tmp_path / "copies.jsonl", ({"text": text} for text in documents * 10))
    parts, _ = split(data=data)
    words = [part[0]["text"].split() for part in parts]
    assert sum(map(len, words)) == len({*words[0], *words[1], *words[2]}) == 3000


@pytest.mark.parametrize("key", ["prompt", "text"])
def test_equal_documents_and_answers_to_one_prompt_stay_together(split, tmp_path, key):
    extra = {"completion": "answer"} if key == "prompt" else {}
    data = write(tmp_path / "rows.jsonl", ({key: f"meaning {n // 3}", **extra} for n in range(180)))
    rows, _ = split(data=data)
    parts = [{row[key] for row in part} for part in rows]
    assert not (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
    assert Counter(row[key] for row in rows[2]).most_common()[-1][1] == 3


def test_answers_to_one_message_stay_together(split, tmp_path):
    def conversation(n):
        asked = {"role": "user", "content": f"meaning {n // 3}"}
        return {"messages": [asked, {"role": "assistant", "content": f"answer {n}"}]}

    data = write(tmp_path / "chats.jsonl", map(conversation, range(180)))
    rows, _ = split(data=data)
    parts = [[row["messages"][0]["content"] for row in part] for part in rows]

    assert [len(part) for part in parts] == [162, 9, 9]
    assert not {*parts[0]} & {*parts[1]}
    assert not {*parts[0]} & {*parts[2]}
    assert set(Counter(parts[2]).values()) == {3}


def turns(n, n_turns):
    said = ((f"question {n}.{turn}", f"answer {n}.{turn}") for turn in range(n_turns))
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text}
        for both in said
        for role, text in zip(roles, both, strict=True)
    ]


def test_turns_of_a_conversation_stay_together_if_each_has_a_row(split, tmp_path):
    rows = [{"messages": turns(n, n_turns)} for n in range(60) for n_turns in (1, 2, 3)]
    parts, _ = split(data=write(tmp_path / "turns.jsonl", rows))
    answers = [{m["content"] for row in part for m in row["messages"]} for part in parts]
    assert all(answers)
    assert not (answers[0] & answers[1]) | (answers[0] & answers[2]) | (answers[1] & answers[2])


def test_beginnings_of_the_training_conversations_are_no_test_data(split, tmp_path):
    data, test = (
        write(tmp_path / f"{n_turns}.jsonl", ({"messages": turns(n, n_turns)} for n in range(60)))
        for n_turns in (3, 2)
    )
    with pytest.raises(DataError, match="test data are a copy or a part of the training data"):
        split(data=data, test_data=test)


def test_prompts_that_differ_in_white_space_stay_together(split, tmp_path):
    made = ({"prompt": f"what {n // 2}?" + " " * (n % 2), "completion": "x"} for n in range(180))
    rows, _ = split(data=write(tmp_path / "rows.jsonl", made))
    parts = [{row["prompt"].strip() for row in part} for part in rows]
    assert not (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])


def test_tasks_of_glue_in_one_folder_have_data_of_their_own(split, tmp_path):
    (folder := tmp_path / "data").mkdir()
    for name, n in (("train", 100), ("validation_matched", 9), ("validation_mismatched", 9)):
        made = ({"premise": f"{name} {i}", "hypothesis": "It is."} for i in range(n))
        write(folder / f"{name}.jsonl", ({**row, "label": i % 3} for i, row in enumerate(made)))
    matched, found = split(data=f"glue/mnli:{folder}")
    mismatched, other = split(data=f"glue/mnli_mismatched:{folder}")

    assert matched[2][0]["text"] == "validation_matched 0"
    assert mismatched[2][0]["text"] == "validation_mismatched 0"
    assert found[1] != other[1]


def test_parts_contain_all_classes(tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (120, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(120) % 4
    names = ["ape", "bee", "cat", "dog"]
    rows = [(pixels, names[label]) for pixels, label in zip(images, labels, strict=True)]
    write_images(tmp_path / "all.parquet", rows)
    asked = {
        "generation": None,
        "run.data": str(tmp_path / "all.parquet"),
        "run.task": "image-classification",
    }
    study = load_study("survey", {**asked, "methods": [{"key": "lora", "method": "lora"}]})
    files, _, _ = split_data(study, tmp_path / "study")
    for part, n in (("train", 108), ("validation", 6), ("test", 6)):
        found = load_images(str(files[part]), "train", "label")
        assert len(found) == n
        assert {name for _, name in found} == {*names}


def test_named_splits_of_a_data_set_are_the_parts(split, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (folder := tmp_path / "tales").mkdir()
    for name, n in (("train", 60), ("validation", 5), ("test", 7)):
        write(folder / f"{name}.jsonl", ({"text": f"{name} {i}"} for i in range(n)))
    named = {
        "data": f"{folder}::train",
        "eval_data": f"{folder}::validation",
        "test_data": f"{folder}::test",
    }
    parts, found = split(**named)

    assert [len(part) for part in parts] == [60, 5, 7]
    assert parts[2][0] == {"text": "test 0"}

    others, other = split(**{**named, "test_data": f"{folder}::test[:3]"})
    assert [len(part) for part in others] == [60, 5, 3]
    assert other[1] != found[1]


@pytest.mark.parametrize(
    "task, metric, n_classes",
    [
        ("mrpc", "test_f1", 2),
        ("stsb", "test_pearson", 0),
    ],
)
def test_validation_split_of_glue_is_test_data(tmp_path, split, task, metric, n_classes):
    (folder := tmp_path / "data").mkdir()
    for name, n in (("train", 100), ("validation", 9)):
        made = ({f"sentence{k}": f"{name} sentence{k} {i}" for k in (1, 2)} for i in range(n))
        rows = (
            {**row, "label": i % n_classes if n_classes else i / 4} for i, row in enumerate(made)
        )
        write(folder / f"{name}.jsonl", rows)
    assert (
        load_study("survey", {"generation": None, "run.data": f"glue/{task}:{folder}"}).metric
        == metric
    )

    (train, validation, test), found = split(data=f"glue/{task}:{folder}")
    assert [len(part) for part in (train, validation, test)] == [95, 5, 9]
    assert [row["text"] for row in test] == [f"validation sentence1 {i}" for i in range(9)]
    assert [row["text_pair"] for row in test] == [f"validation sentence2 {i}" for i in range(9)]
    # classes by their index: a run sorts them, and their names would be in another order
    assert [row["label"] for row in test] == [
        i % n_classes if n_classes else i / 4 for i in range(9)
    ]
    assert len(found[2]) == 1


LINES = [f"line {n} of a long tale that nobody would write twice\n" for n in range(80)]


@pytest.mark.parametrize("part", ["eval_data", "test_data"])
@pytest.mark.parametrize(
    "copy",
    [
        *("".join(LINES)[cut] for cut in (slice(1000), slice(777, 1500))),
        "".join(f" {one}" for one in LINES[5:]),
    ],
)
def test_copy_or_part_of_the_training_data_is_refused_as_held_out_data(split, tmp_path, part, copy):
    (tmp_path / "all.txt").write_text("".join(LINES))
    (tmp_path / "part.txt").write_text(copy)
    with pytest.raises(DataError, match=part):
        split(data=str(tmp_path / "all.txt"), **{part: str(tmp_path / "part.txt")})
    assert not (tmp_path / "study").exists()


def test_texts_that_two_parts_share_are_counted(split, tmp_path):
    def rows(start):
        return [{"text": f"document {n}"} for n in range(start, start + 60)]

    data = write(tmp_path / "a.jsonl", rows(0))
    test = write(tmp_path / "b.jsonl", rows(55))
    with pytest.warns(UserWarning, match="5 of 60"):
        _, found = split(data=data, test_data=test)

    assert "5 of 60" in found[2][0]

    (tmp_path / "all.txt").write_text("".join(LINES))
    (tmp_path / "end.txt").write_text(
        "".join(LINES[-20:] + [line.replace("twice", "once") for line in LINES[-20:]])
    )
    with pytest.warns(UserWarning, match="20 of 40"):
        split(data=str(tmp_path / "all.txt"), test_data=str(tmp_path / "end.txt"))


def test_data_that_cannot_be_split_are_refused(split, tmp_path):
    with pytest.raises(DataError, match="nothing for validation"):
        split(data=write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}]))


def test_data_of_a_folder_in_use_are_not_written(split, tmp_path):
    data = write(tmp_path / "texts.jsonl", ({"text": f"text {n}"} for n in range(40)))
    with locked(tmp_path / "study"), pytest.raises(ConfigError, match="another process"):
        split(data=data)
