"""The stand-in of a smoke test: a small random base of the study's architecture, and rows of its format."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from qpeft.errors import ConfigError
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.smoke import smoke_test
from qpeft_lab.compare.study import load_study

LORA = {"key": "lora", "method": "lora", "settings": {"r": 2}, "lr": 0.01}


def study(**fields):
    return load_study("survey", {"generation": None, "methods": [LORA]} | fields)


def test_smoke_test_has_the_architecture_of_the_base_and_the_columns_of_the_data(tiny_encoder, tmp_path):
    columns = {"training.text_column": "sentence", "training.label_column": "verdict"}
    made = smoke_test(study(base=str(tiny_encoder), task="text-classification", **columns), tmp_path / "out")
    assert AutoConfig.from_pretrained(made.base).model_type == "bert"
    for source in (made.data, made.eval_data, made.test_data):
        rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
        assert {tuple(row) for row in rows} == {("sentence", "verdict")}
        assert len({row["verdict"] for row in rows}) == 3
    assert (len(made.seeds), made.tuning.grid, made.training["steps"]) == (1, [1.0], 2)
    make_plan(made, tmp_path / "out")


def test_smoke_test_has_the_given_architecture_without_the_base(tmp_path):
    made = smoke_test(study(base="no/hub/id", smoke={"model_type": "gemma2", "sliding_window": 24}), tmp_path)
    config = AutoConfig.from_pretrained(made.base)
    assert (config.model_type, config.sliding_window, config.num_hidden_layers) == ("gemma2", 24, 2)


def test_second_smoke_test_in_the_folder_uses_the_same_stand_in(tmp_path):
    first = smoke_test(study(), tmp_path)
    assert make_plan(smoke_test(study(), tmp_path), tmp_path).setup == make_plan(first, tmp_path).setup


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        smoke_test(study(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'gpt22'; did you mean 'gpt2'"):
        smoke_test(study(smoke={"model_type": "gpt22"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
