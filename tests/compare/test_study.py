"""Study files: refused whole, with the field at fault."""

from pathlib import Path

import pytest
from studies import count_methods

from qpeft import methods
from qpeft.compare import BUILT_IN
from qpeft.compare.cell import Setup, SplitData
from qpeft.compare.plan import config_hash
from qpeft.compare.rows import Base
from qpeft.compare.study import Study, Training
from qpeft.compare.study_file import load_study
from qpeft.errors import ConfigError

SMALL = """
name: small
title: A small study
question: Which?
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
    assert count_methods(study, tmp_path).keys() == {method.key for method in study.methods}  # with their settings


def test_controls_of_budgets_are_of_the_method_that_they_control():
    of = {spec.key: spec for spec in load_study("budgets").methods}
    controls = [spec for spec in of.values() if spec.against]
    assert controls
    assert not [spec.key for spec in controls if spec.method != of[spec.against].method]


def test_backend_of_a_method_is_validated(tmp_path):
    study = load_study(written(tmp_path, SMALL.replace("lr: 0.01}", "lr: 0.01, backend: {shots: 100}}")))
    assert study.methods[-1].backend == {"shots": 100}
    with pytest.raises(ConfigError, match="backend: unknown backend setting 'shot'"):
        load_study(written(tmp_path, SMALL.replace("lr: 0.01}", "backend: {shot: 100}}")))
    with pytest.raises(ConfigError, match="lora has none"):
        load_study(written(tmp_path, SMALL.replace("settings: {r: 2}}", "backend: {shots: 100}}")))


def test_defaults_equal_the_specification():
    study = load_study("survey", {"seeds": [0, 1, 2]})
    assert study.tuning.grid == [0.3, 1.0, 3.0, 10.0]
    assert study.tuning.seed not in study.seeds
    assert (study.training.max_grad_norm, study.training.warmup) == (1.0, 0.06)


def test_middle_learning_rate_is_the_given_or_the_default_one(tmp_path):
    study = load_study(written(tmp_path, SMALL))
    assert [method.base_rate for method in study.methods] == [methods.named("lora").learning_rate, 0.01]


def test_training_for_the_data_replaces_that_of_the_study_but_not_overrides(tmp_path):
    of_data = "data: a.txt\ntraining: {steps: 9, seq_len: 64}\nby_data: {b.txt: {epochs: 3, seq_len: 32}}\n"
    path = written(tmp_path, SMALL + of_data)

    def training(**overrides):
        found = load_study(path, {name.replace("__", "."): value for name, value in overrides.items()}).training
        return found.epochs, found.steps, found.seq_len

    steps_of_default = Training().steps
    assert training() == (None, 9, 64)
    assert training(data="b.txt") == (3, steps_of_default, 32)
    assert training(data="b.txt", training__seq_len=16) == (3, steps_of_default, 16)
    assert training(data="b.txt", training__steps=5) == (None, 5, 32)


def test_overrides_set_nested_fields(tmp_path):
    study = load_study(written(tmp_path, SMALL), {"training.steps": 7, "base": "gpt2", "generation.n_prompts": 3})
    assert (study.training.steps, study.base, study.generation.n_prompts) == (7, "gpt2", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.steps": "many"}, "training.steps.*got 'many'"),
        ({"training.stesp": 3}, "training.stesp: unknown field 'stesp'; did you mean 'steps'"),
        ({"referense": "lora"}, "referense: .*did you mean 'reference'"),
        ({"generation": {"max_tokens": 8}}, "did you mean 'max_new_tokens'"),
        ({"seeds": [-1, 0]}, "seeds.0"),
        ({"by_data": {"a.txt": {"epoch": 3}}}, "by_data.a.txt.epoch: unknown field 'epoch'; did you mean 'epochs'"),
        ({"by_data": {"a.txt": 3}, "data": "a.txt"}, "by_data.a.txt"),
        ({"by_data": [3]}, "by_data"),
        ({"tuning.grid": [-1.0]}, "tuning.grid.0"),
        ({"metric": "test_accuracy"}, "metric test_accuracy is not one of task causal-lm; use test_loss or bleu"),
        ({"metric": "test_mcc", "task": "text-regression"}, "use test_loss or test_pearson or test_spearman"),
        ({"task": "text-regression", "training.label_smoothing": 0.1}, "label_smoothing is for classes and tokens"),
        ({"training.text_pair_column": "b"}, "text_pair_column is for labelled texts, not for causal-lm"),
        ({"training.steps": 3, "training.epochs": 1}, "training.steps and training.epochs both limit a run; give one"),
        ({"training.lr_schedule": "sine"}, "training.lr_schedule"),
        ({"training.separator": "", "training.pad_rows": True}, "separator joins the texts, training.pad_rows keeps"),
        ({"training.pad_rows": True, "task": "text-classification"}, "training.pad_rows is for task causal-lm"),
        ({"eval_data": "a.txt", "test_data": "a.txt"}, "would be chosen on the test"),
        ({"methods": [{"key": "lora", "method": "lora", "label": "=1+1"}]}, "methods.0.label"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "duplicate seed"),
        ({"seeds": [1000]}, "tuning.seed 1000 is one of seeds"),
        ({"reference": "loar"}, "no method has the key 'loar'; there are lora, qpa"),
        ({"task": "translation"}, "unknown task 'translation'"),
        ({"metric": "bleu"}, "needs task causal-lm and `generation`"),
        ({"metric": "nist"}, "needs task causal-lm and `generation`"),
        ({"metric": "meteor", "generation": {}}, r"needs generation\.meteor"),
        ({"metric": "test_ppl"}, "unknown metric 'test_ppl'"),
        ({"generation": {"length_penalty": 0.5}}, "length_penalty is for beam search"),
        ({"methods": [{"key": "lora", "method": "lroa"}]}, "unknown method 'lroa'; did you mean 'lora'"),
        ({"methods": [{"key": "lora", "method": "lora"}] * 2}, "duplicate key 'lora'"),
        ({"methods": [{"key": "lora", "method": "lora", "role": "control"}]}, "against"),
        (
            {"methods": [{"key": "lora", "method": "lora", "role": "control", "against": "lora"}]},
            "lora is a control against itself",
        ),
        ({"methods": [{"key": "../lora", "method": "lora"}]}, "methods.0.key"),
        ({"methods": []}, "methods"),
        ({"blocks": [{"of": "nobody", "methods": [{"key": "a", "method": "lora"}]}]}, "no method has the key 'nobody'"),
        ({"blocks": [{"of": "qpa", "methods": [{"key": "a", "method": "lora", "vary": "r"}]}]}, "`values` together"),
        (
            {"blocks": [{"of": "qpa", "methods": [{"key": "a", "method": "lora", "vary": "r", "values": [2, 1]}]}]},
            "increase",
        ),
    ],
)
def test_invalid_field_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_study(written(tmp_path, SMALL), change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no fields"),
        ("- a\n- b\n", "has no fields"),
        ("a: [1", "is not YAML"),
        ("name: x\n", "title: Field"),
    ],
)
def test_invalid_file_is_rejected(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_study(written(tmp_path, text))


def test_unknown_name_lists_built_in_studies():
    with pytest.raises(ConfigError, match="controls, depth, feature-source, noise, qubits"):
        load_study("surwey")


def test_yaml_cannot_make_python_objects(tmp_path):
    with pytest.raises(ConfigError, match="is not YAML"):
        load_study(written(tmp_path, SMALL + "base: !!python/object/apply:os.getcwd []\n"))


def test_new_options_at_their_defaults_keep_the_hash_of_earlier_rows():
    none, base = Path("x"), Base(id="b", sha256="0", params_total=1, dtype="float32")
    data = SplitData(id="d", sha256="1", train=none, validation=none, test=none)
    study = load_study("survey")
    full = next(spec for spec in study.methods if spec.key == "full")

    def hash_of(training):
        return config_hash(
            study, Setup(model="m", base=base, data=data, task="causal-lm", training=training), full, [1e-3]
        )

    assert hash_of(Training()) == "bfe4f281effd"  # as in commit 06b399f
    changes = {"pad_rows": True, "separator": "", "epochs": 1, "lr_schedule": "cosine", "label_smoothing": 0.1}
    changed = {hash_of(Training(**{name: value})) for name, value in changes.items()}
    assert len(changed - {hash_of(Training())}) == len(changes)


def test_steps_of_the_command_replace_the_epochs_of_the_file(tmp_path):
    file = written(tmp_path, f"{SMALL}training: {{epochs: 2}}\n")
    assert load_study(file).training.epochs == 2
    assert load_study(file, {"training.steps": 5}).training.epochs is None
    assert load_study("survey", {"training.epochs": 0.5}).training.epochs == 0.5


def test_study_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Study.model_validate(load_study("survey").model_dump()).name = "other"


@pytest.mark.parametrize("bomb", ["a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n"
                                  for i in range(1, 30)), "a: &a [*a]\n"])  # fmt: skip
def test_too_many_expanded_aliases_are_refused(tmp_path, bomb):
    (tmp_path / "study.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match="values after its aliases"):
        load_study(str(tmp_path / "study.yaml"))


def test_other_encoding_than_utf8_is_rejected(tmp_path):
    (tmp_path / "study.yaml").write_bytes("name: stüdy".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as text in UTF-8"):
        load_study(str(tmp_path / "study.yaml"))


@pytest.mark.parametrize("field", ["lr_scale", "training.weight_decay", "training.max_grad_norm"])
def test_infinite_number_is_refused(field):
    with pytest.raises(ConfigError, match=rf"{field}: Input should be a finite number"):
        load_study("survey", {field: float("inf")})


@pytest.mark.parametrize("field", ["training.steps", "training.batch_size", "training.eval_every", "test_blocks"])
def test_number_beyond_every_count_is_refused(field):
    with pytest.raises(ConfigError, match=rf"{field}: Input should be less than or equal to 2147483647"):
        load_study("survey", {field: 10**20})


def test_nested_merge_keys_are_refused(tmp_path):
    levels = [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 6)}]\n" for n in range(1, 13)]
    (path := tmp_path / "study.yaml").write_text("a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(levels))
    with pytest.raises(ConfigError, match="more than 100000 values after its merge keys"):
        load_study(str(path))
