"""Input of which a part would have been ignored, or misread, without a word."""

import io
import json
import math
import sys

import pytest

from qpeft.core.checkpoint import CONFIG, WEIGHTS
from qpeft.errors import ConfigError, DataError, DataWarning
from qpeft_lab import revisions
from qpeft_lab.data.folders import content_hash
from qpeft_lab.data.labelled import collect_labels, label_name, load_labelled_texts
from qpeft_lab.data.sources import load_examples, load_rows
from qpeft_lab.data.text import TEMPLATES, _render_chat
from qpeft_lab.files import parse_yaml
from qpeft_lab.settings import RunSettings


@pytest.fixture
def train(qpeft_cli, text_file, tmp_path):
    """Call `qpeft train` on the embedded base for two steps; its folder."""

    def call(options, code=0, data=text_file):
        usual = f"--model embedded --data {data} --steps 2 --seq-len 16 --eval-blocks 2"
        return qpeft_cli(f"train {usual} --out {tmp_path}/run {options}", code=code)

    return call


@pytest.mark.parametrize("names", [("1", "1.0"), ("1", "01"), ("-0", "0", "a")])
def test_classes_that_are_the_same_number_are_named(names):
    with pytest.warns(DataWarning, match="the same number; they are taken as two"):
        assert collect_labels(names, "data.csv", ()) == tuple(sorted(names))


def test_files_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("a bird")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "more").mkdir()
    with pytest.warns(DataWarning, match=r"not read in .*: README\.md, more"):
        assert load_rows(str(tmp_path), "train") == [{"text": "a bird"}]


def test_folder_with_splits_is_refused(tmp_path):
    for name in ("train-00", "train-01", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    with pytest.raises(DataError, match=r"splits test, train, .*::train"):
        load_rows(str(tmp_path), "train")
    assert [row["text"] for row in load_rows(f"{tmp_path}::test", "train")] == ["test"]


def test_picture_in_another_class_is_other_data(tmp_path):
    for name in ("bird", "cat"):
        (tmp_path / name).mkdir()
    picture = tmp_path / "bird" / "a.png"
    picture.write_bytes(b"a")
    before = content_hash(str(tmp_path))
    picture.rename(tmp_path / "cat" / "a.png")
    assert content_hash(str(tmp_path)) != before


def test_run_in_the_folder_of_its_data_is_no_data(tmp_path):
    """A killed run could not be resumed there: its own checkpoints were other data."""
    (tmp_path / "a.txt").write_text("a bird")
    before = content_hash(str(tmp_path))
    (checkpoint := tmp_path / "runs" / "first" / "checkpoints").mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (tmp_path / "runs" / "first" / ".lock").touch()
    assert content_hash(str(tmp_path)) == before
    (tmp_path / "b.txt").write_text("a cat")
    assert content_hash(str(tmp_path)) != before


def test_option_that_is_given_twice_is_named(qpeft_cli):
    plan = "plan --model embedded --method lora --r 4"
    assert "Note: --r is given twice; the last one counts" in qpeft_cli(f"{plan} --r 8").stderr
    assert "twice" not in qpeft_cli(plan).stderr


def test_prompt_on_standard_input_loses_the_last_line_break_alone(monkeypatch):
    from qpeft_lab.cli.generate import _prompt

    monkeypatch.setattr(sys, "stdin", io.StringIO("### Response:\n\n"))
    assert _prompt(None) == "### Response:\n"


def test_file_with_the_name_of_a_built_in_text_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qpeft_lab.demo.corpus.numpy_docs", lambda: ["a"])  # which takes seconds
    (tmp_path / "numpy-docs").mkdir()
    with pytest.warns(DataWarning, match=r"numpy-docs is the built-in text; \./numpy-docs"):
        load_rows("numpy-docs", "train")


def test_unusual_role_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"messages": [{"role": "asistant", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    with pytest.warns(DataWarning, match="1 messages of .* unusual role 'asistant'"):
        load_examples(str(file), "train", RunSettings(model="x", data=str(file), out="y"))


def test_number_of_classes_is_shown(train, tmp_path):
    rows = "".join(f"a bird {i},{'yn'[i % 2]}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    result = train("--task text-classification", data=tmp_path / "a.csv")
    assert "examples of 2 classes" in result.stderr


def test_score_in_another_dtype_is_named(train, qpeft_cli, tmp_path):
    train("--dtype bfloat16")
    (tmp_path / "other.txt").write_text("another bird sings. " * 40)
    command = f"evaluate --adapter {tmp_path}/run --data {tmp_path}/other.txt"
    result = qpeft_cli(command)
    assert "the run had dtype=bfloat16; it is scored with dtype=float32" in result.stderr
    assert "the run had" not in qpeft_cli(f"{command} --dtype bfloat16").stderr


def test_narrow_terminal_shows_values(qpeft_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert "40,960" in qpeft_cli("plan --model embedded --method lora --r 4").stdout


NUMBERS = {
    "1e-1": 0.1,
    "-2.": -2.0,
    "+.5": 0.5,
    "1_000": 1000,
    "0": 0,
    "-.inf": -math.inf,
    "1:30": "1:30",  # by YAML 1.1 this would be 90
    "1:30.5": "1:30.5",
    "010": "010",  # and this 8
    "0b1": "0b1",
    "0x1f": "0x1f",
}


@pytest.mark.parametrize("text, value", NUMBERS.items())
def test_numbers_in_yaml_are_what_people_write(text, value):
    assert repr(parse_yaml(text)) == repr(value)


def test_setting_of_another_type_is_explained(train):
    result = train("--method lora --set bias=true", code=2)
    assert "possibly one of another type" in result.stderr
    result = train("--method lora --set use_dora='\"false\"'", code=2)
    assert "use_dora must be True or False, got 'false'" in result.stderr


def test_setting_that_makes_another_method_is_refused(train):
    result = train("--method dora --set use_dora=false", code=2)
    assert "use_dora makes DoRA what it is" in result.stderr
    train("--method dora --set use_dora=true")


def test_folder_of_tables_without_names_is_refused(tmp_path):
    """The first line of the second file was taken for the same line of names, and left out."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("a bird,1\na cat,0\na dog,1\n")
    settings = RunSettings(model="x", data="y", out="z", task="text-classification")
    with pytest.raises(DataError, match="no line with names of columns; add it to each"):
        load_labelled_texts(str(tmp_path), "train", settings, label_name)


def test_columns_that_are_not_read_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "c"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(DataWarning, match="prompt, completion, .* system, which are not"):
        load_examples(str(file), "train", RunSettings(model="x", data=str(file), out="y"))


@pytest.mark.parametrize("stdin", [None, io.StringIO("\udcff")])
def test_prompt_that_is_no_text_is_refused(qpeft_cli, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert "the prompt is" in qpeft_cli("generate --model embedded", code=2).stderr


def test_folder_that_is_gone_is_named(qpeft_cli, text_file, tmp_path):
    command = f"train --model gone/base --data {text_file} --out {tmp_path}/run"
    assert "there is no such folder" in qpeft_cli(command, code=2).stderr


@pytest.fixture
def user(tmp_path):
    """The folder of an adapter with an earlier revision; its digest."""
    folder = tmp_path / "runs" / "ana"
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_text("old")
    return folder, revisions.revision(folder)


def test_rollback_keeps_a_link(user, tmp_path):
    folder, old = user
    link = tmp_path / "ana"
    link.symlink_to(folder)
    revisions.keep(link, old)
    (folder / WEIGHTS).write_text("new")
    revisions.restore(link, old)
    assert link.is_symlink()
    assert revisions.revision(folder) == old


def test_rollback_loses_no_weights_without_a_config(user):
    folder, old = user
    revisions.keep(folder, old)
    (folder / WEIGHTS).write_text("new")
    (folder / CONFIG).unlink()
    with pytest.raises(ConfigError, match="no whole adapter, so it cannot be kept"):
        revisions.restore(folder, old)
    (folder / WEIGHTS).unlink()
    revisions.restore(folder, old)
    assert revisions.revision(folder) == old


def test_rollback_brings_back_the_classes_of_the_weights(user):
    folder, old = user
    (folder / "task.json").write_text("old classes")
    revisions.keep(folder, old)
    (folder / WEIGHTS).write_text("new")
    (folder / "task.json").write_text("new classes")
    revisions.restore(folder, old)
    assert (folder / "task.json").read_text() == "old classes"


def test_permissions_stay_those_that_somebody_gave(user):
    """Also of the kept copy of a private adapter, and of files beside it."""
    folder, old = user
    (folder / "serve.sh").write_text("")
    modes = {WEIGHTS: 0o600, CONFIG: 0o640, "serve.sh": 0o750}
    for name, mode in modes.items():
        (folder / name).chmod(mode)
    folder.chmod(0o700)

    def found(place, names):
        return {name: (place / name).stat().st_mode & 0o777 for name in names}

    kept = revisions.keep(folder, old)
    assert found(kept, (WEIGHTS, CONFIG)) == {WEIGHTS: 0o600, CONFIG: 0o640}
    assert kept.stat().st_mode & 0o777 == 0o700
    (folder / WEIGHTS).write_text("new")
    revisions.restore(folder, old)
    assert found(folder, modes) == modes
    assert folder.stat().st_mode & 0o777 == 0o700


def test_revisions_of_the_present_folder_are_listed(user, qpeft_cli, monkeypatch):
    folder, old = user
    revisions.keep(folder, old)
    (folder / WEIGHTS).write_text("new")
    monkeypatch.chdir(folder)
    assert old in qpeft_cli("rollback .", code=0).output


@pytest.mark.parametrize("end", ["", "\n"])
def test_end_mark_of_an_earlier_answer_that_a_template_strips_is_learned(tokenizer, end):
    answer = "{% if m.role == 'assistant' and not loop.last %}[{{ m.content.strip() }}|"
    template = "{% for m in messages %}" + answer + "{% else %}[{{ m.content }}|{% endif %}"
    tokenizer.chat_template = template + "{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    turns = [("user", "u"), ("assistant", f"a{end}"), ("user", "v"), ("assistant", f"b{end}")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text, spans = _render_chat(messages, tokenizer)
    assert text[slice(*spans[0])] == "a|"


def test_conversation_that_begins_with_the_assistant_is_read(tokenizer):
    tokenizer.chat_template = TEMPLATES["chatml"]
    turns = [("assistant", "a"), ("user", "u"), ("assistant", "b")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text, spans = _render_chat(messages, tokenizer)
    assert [text[slice(*span)][:1] for span in spans] == ["a", "b"]
