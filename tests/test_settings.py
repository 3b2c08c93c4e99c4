"""Settings of a run are checked from the metadata of their own fields, and with each other."""

import math

import pytest
from pydantic import ValidationError

from qpeft.checks import MOST
from qpeft.errors import ConfigError
from qpeft_lab import RunSettings
from qpeft_lab.settings import read_settings


def settings(**changes):
    return RunSettings(**{"model": "m", "data": "d", "out": "o", **changes})


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"dtype": "float16"}, "dtype"),
        ({"task": "text"}, "task"),
        ({"steps": 0}, "at least 1"),
        ({"steps": MOST + 1}, "at most"),
        ({"lr": -1e300}, "above 0"),
        ({"seq_len": 1}, "seq_len"),
        ({"host": "nohost"}, "unknown host"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"warmup": 1.0}, "warmup"),
        ({"method": "full", "dtype": "bfloat16"}, "dtype"),
        ({"steps": 500, "epochs": 1}, "epochs"),
        ({"lr_schedule": "sine"}, "did you mean 'cosine'"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1, "task": "text-regression"}, "label_smoothing"),
        ({"pad_rows": True, "task": "text-classification"}, "pad_rows"),
        ({"load_in_4bit": True, "task": "text-classification"}, "load_in_4bit"),
        ({"text_pair_column": "b"}, "text_pair_column"),
        ({"text_pair_column": "b", "task": "image-classification"}, "text_pair_column"),
        ({"prompt_column": "text", "completion_column": "text"}, "both 'text'"),
        ({"label_column": "text", "task": "text-classification"}, "text_column and label_column"),
        ({"method": "head"}, "task"),
        ({"method": "prefix", "gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"method": "prefix", "task": "image-classification"}, "prefix"),
        ({"host": "prefix", "method": "lora"}, "host"),
        ({"method": "lora", "backend_settings": {"shots": 9}}, "shots"),
        ({"backend_settings": {"noise": 1.5}}, "noise"),
        ({"backend_settings": {"shot": 3}}, "shots"),
    ],
)
def test_invalid_settings_are_refused(changes, field):
    with pytest.raises(ConfigError, match=field):
        settings(**changes).check()


@pytest.mark.parametrize(
    "name, value",
    [("steps", 2.0), ("steps", True), ("lr", "0.5"), ("pad_rows", 1), ("stepz", 3)],
)
def test_unknown_fields_and_values_of_another_type_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        settings(**{name: value})


@pytest.mark.parametrize(
    "steps, evaluate, save, log",
    [(1, 1, 1, 1), (60, 6, 6, 1), (500, 50, 50, 1), (20_000, 2000, 500, 20)],
)
def test_default_intervals_follow_from_the_number_of_steps(steps, evaluate, save, log):
    assert settings(steps=steps).intervals() == (evaluate, save, log)
    assert settings(steps=steps, eval_every=3, save_every=4).intervals() == (3, 4, log)


@pytest.mark.parametrize(
    "changes, n_available, number, blocks",
    [
        ({"steps": 500}, 1000, 11, 202),  # 4,000 blocks trained pay for 2,222
        ({"steps": 100}, 1000, 6, 74),
        ({"steps": 20, "batch_size": 4}, 1000, 2, 22),
        ({"steps": 2, "batch_size": 1}, 1000, 2, 8),  # the least
        ({"steps": 9000, "gradient_accumulation_steps": 2}, 10_000, 11, 512),
        ({"steps": 100}, 20, 11, 20),  # small evaluations are more
        ({"steps": 100, "eval_every": 10}, 1000, 11, 40),
        ({"steps": 100, "eval_blocks": 200}, 1000, 2, 200),
        ({"steps": 100, "eval_blocks": 0, "eval_every": 50}, 1000, 3, 1000),
        ({"epochs": 2.0}, 1000, 2, 35),
        ({"steps": 80, "batch_size": 16, "task": "text-classification"}, 872, 2, 872),
    ],
)
def test_default_evaluations_take_a_fifth_of_the_time(changes, n_available, number, blocks):
    run = settings(**changes)
    made = run.with_data(64, n_available)
    chosen = made.evaluations(n_available)

    assert chosen[:2] == (number, blocks)
    assert made.with_data(64, n_available) == made  # nothing is chosen twice
    assert number == 1 + math.ceil(made.n_steps / made.eval_every)

    if run.eval_blocks is run.eval_every is None and blocks > 8:
        assert chosen.share <= 0.2
    # independently: a forward pass is 0.45 of a step
    scored = 0.45 * number * blocks
    trained = made.steps * made.batch_size * made.gradient_accumulation_steps

    assert chosen.share == pytest.approx(scored / (scored + trained))


def test_fields_of_a_file_are_validated(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: gpt2\nlr: 1e-3\nsteps: 5\nmethod_settings: {r: 2}\n")
    assert read_settings(file) == {
        "model": "gpt2",
        "lr": 0.001,
        "steps": 5,
        "method_settings": {"r": 2},
    }


@pytest.mark.parametrize(
    "content, found",
    [
        ("step: 5", "steps"),
        ("steps: many", "many"),
        ("lr: 0", "lr"),
        ("- a", "run.yaml"),
        ("steps: 1\nsteps: 2", "steps occurs twice"),
        ("{", "YAML"),
    ],
)
def test_bad_file_of_settings_is_refused(tmp_path, content, found):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ConfigError, match=found):
        read_settings(tmp_path / "run.yaml")
