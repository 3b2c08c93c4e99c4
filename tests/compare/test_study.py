"""Study files: refused whole, with the field at fault; and the study that a smoke test makes of
one.
"""

from pathlib import Path

import pytest
from folders import read_rows
from transformers import AutoConfig

from qpeft.errors import ConfigError
from qpeft_lab.compare import BUILT_IN
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.smoke import smoke_test
from qpeft_lab.compare.study import code_of, load_study
from studies import count_methods, of_run

SMALL = """
name: small
title: A small study
question: Which?
run: {model: embedded, data: numpy-docs}
methods:
  - {key: lora, method: lora, settings: {r: 2}}
  - {key: qpa, method: qpa, lr: 0.01}
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_study_is_valid(name, tmp_path):
    study = load_study(name)
    assert study.name == name
    assert study.question.endswith("?")
    # with their settings
    assert count_methods(study, tmp_path).keys() == {method.key for method in study.methods}


def test_steps_and_epochs_replace_each_other(tmp_path):
    path = written(tmp_path, SMALL.replace("numpy-docs", "numpy-docs, steps: 9"))

    def length(**overrides):
        found = load_study(path, {f"run.{name}": value for name, value in overrides.items()}).run
        return found.epochs, found.steps

    assert length() == (None, 9)
    assert length(epochs=0.5) == (0.5, None)
    assert length(steps=5) == (None, 5)


def test_code_of_a_study_is_found_before_it_is_executed(tmp_path):
    own = (
        "  - {key: own, method: own.py:METHOD, settings: {ansatz: a.py:ring}, backend: {backend:"
        " b.py:B}}\n"
    )
    same = "  - {key: c, method: c.py:METHOD, at_size_of: qpa}\n"
    assert code_of(written(tmp_path, SMALL + own + same)) == [
        "a.py:ring",
        "b.py:B",
        "c.py:METHOD",
        "own.py:METHOD",
    ]


def method(**fields):
    return {"methods": [{"key": "lora", "method": "lora", **fields}]}


def at_size(of="lora", **fields):
    return {
        "methods": [
            {"key": "lora", "method": "lora"},
            {"key": "a", "method": "qpa", "at_size_of": of, **fields},
        ]
    }


@pytest.mark.parametrize(
    "change, match",
    [
        ({"run.steps": "many"}, "steps"),
        ({"run.steps": 0}, "run: steps must be at least 1"),
        ({"run.report_to": ["nosuch"]}, "run: unknown place to report to"),
        ({"run.chat_template": "nosuch"}, "run: unknown chat_template"),
        ({"run": [1]}, "run: fields of a run are needed"),
        ({"run.stesp": 3}, "'stesp'; did you mean 'steps'"),
        ({"steps": 3}, "steps is a field of `run`"),
        ({"referense": "lora"}, "did you mean 'reference'"),
        ({"generation": {"max_tokens": 8}}, "did you mean 'max_new_tokens'"),
        ({"generation": {"length_penalty": 0.5}}, "length_penalty"),
        ({"seeds": [-1, 0]}, r"seeds\.0"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [1000]}, r"tuning\.seed"),
        ({"tuning.grid": [-1.0]}, r"tuning\.grid\.0"),
        ({"metric": "test_accuracy"}, "metric"),
        ({"metric": "test_mcc", "run.task": "text-regression"}, "metric"),
        ({"metric": "bleu"}, "generation"),
        ({"metric": "bertscore_f1", "generation": {}}, "bertscore_model"),
        ({"run.task": "translation"}, "task"),
        ({"run.steps": 3, "run.epochs": 1}, "epochs"),
        ({"run.lr": 0.1}, "lr is not shared"),
        ({"reference": "loar"}, "'loar'"),
        ({"run.data": "glue/mrcp"}, "'mrcp'; did you mean 'mrpc'"),
        ({"run.data": "glue/mrpc", "run.text_column": "a"}, "text_column"),
        (method(label="=1+1"), r"methods\.0\.label"),
        (method(method="lroa"), "'lroa'; did you mean 'lora'"),
        (method(backend={"shots": 100}), "backend"),
        (
            {
                "methods": [{"key": "qpa", "method": "qpa", "backend": {"shot": 1}}],
                "reference": "qpa",
            },
            "'shot'",
        ),
        (method(key="../lora"), r"methods\.0\.key"),
        ({"methods": [{"key": "lora", "method": "lora"}] * 2}, "duplicate key"),
        (at_size(of="nobody"), "'nobody'"),
        (at_size(of="a"), "whose size another determines"),
        (at_size(vary="r", values=[2, 1]), "values"),
        (method(vary="r", values=[1]), "at_size_of"),
    ],
)
def test_invalid_field_is_named(tmp_path, change, match):
    with pytest.raises(ConfigError, match=match):
        load_study(written(tmp_path, SMALL), change)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "fields"),
        (b"name: x\ntitle: x\nquestion: x\nrun: {steps: 5}\n", "run: model: Field required"),
        ("name: stüdy".encode("latin-1"), "YAML"),
        (b"a: &a [*a]\n", "study"),
        (b"base: !!python/object/apply:os.getcwd []\n", "YAML"),  # it makes no Python objects
    ],
)
def test_invalid_file_is_rejected(tmp_path, content, match):
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        load_study(str(tmp_path / "study.yaml"))


# smoke tests

LORA = {
    "key": "lora",
    "method": "lora",
    "settings": {"r": 2},
    "lr": 0.01,
    "published": [{"value": 3.0, "source": "a paper"}],
}


def small_survey(**fields):
    return load_study("survey", {"generation": None, "methods": [LORA]} | fields)


def test_smoke_test_has_the_architecture_of_the_base_and_the_format_of_the_data(
    tiny_encoder, tmp_path
):
    columns = of_run(task="text-classification", text_column="sentence", label_column="verdict")
    made = smoke_test(small_survey(**columns, **of_run(model=str(tiny_encoder))), tmp_path / "out")
    assert AutoConfig.from_pretrained(made.run.model).model_type == "bert"

    for source in (made.run.data, made.run.eval_data, made.test_data):
        rows = read_rows(Path(source))
        assert {tuple(row) for row in rows} == {("text", "label")}
        assert len({row["label"] for row in rows}) == 3
    assert len(made.seeds) == 1
    assert made.tuning.grid == [1.0]
    assert made.run.steps == 2
    assert made.methods[0].published == []  # nothing invented is compared with a paper

    make_plan(made, tmp_path / "out")


def test_smoke_test_has_the_given_architecture_without_the_base(tmp_path):
    small = {"model_type": "gemma2", "sliding_window": 24}
    made = smoke_test(small_survey(**of_run(model="no/hub/id"), smoke=small), tmp_path)
    config = AutoConfig.from_pretrained(made.run.model)
    assert config.model_type == "gemma2"
    assert config.sliding_window == 24
    assert config.num_hidden_layers == 2


def test_second_smoke_test_in_the_folder_uses_the_same_stand_in(tmp_path):
    first = smoke_test(small_survey(), tmp_path)
    assert (
        make_plan(smoke_test(small_survey(), tmp_path), tmp_path).setup
        == make_plan(first, tmp_path).setup
    )


def test_folder_with_other_files_and_unknown_architecture_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        smoke_test(small_survey(), tmp_path)
    with pytest.raises(ConfigError, match="'gpt22'; did you mean 'gpt2'"):
        smoke_test(small_survey(smoke={"model_type": "gpt22"}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
