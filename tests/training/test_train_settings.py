from dataclasses import fields

import pytest

from qpeft.errors import ConfigError
from qpeft.training import TrainSettings


def settings(**changes):
    return TrainSettings(**{"model": "m", "data": "d", "out": "o", **changes})


def test_fields_have_help_texts():
    assert all(field.metadata["help"].endswith(".") for field in fields(TrainSettings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lroa"}, "unknown method 'lroa'; did you mean 'lora'? Choose one of qpa, qaa, quantum_peft,"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"task": "text"}, "unknown task 'text'; choose one of causal-lm"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seq_len": 1}, "seq_len must be at least 2"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"method_settings": {"lora_alpha": float("nan")}}, "lora_alpha must be a finite number, got nan"),
        ({"seed": 99_999_999_999}, "seed must be at most 4,294,967,295, got 99999999999"),
        ({"warmup": 1.0}, "warmup must be below 1"),
        ({"method": "full", "dtype": "bfloat16"}, "use dtype float32, or an adapter method"),
        ({"steps": 500, "epochs": 1}, "steps and epochs both limit the run; give one of them"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"lr_schedule": "sine"}, "unknown lr_schedule 'sine'; did you mean 'cosine'? Choose one of linear"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1, got 1.0"),
        ({"separator": "", "pad_rows": True}, "separator joins the texts, pad_rows keeps every row apart; give one"),
        (
            {"separator": "", "task": "text-classification"},
            "separator is for task causal-lm, not for text-classification",
        ),
        ({"method": "head"}, "task causal-lm lacks"),
        ({"method": "prefix", "gradient_checkpointing": True}, "cannot be combined with gradient_checkpointing"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError) as refused:
        settings(**changes).check()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("steps", "evaluate", "save", "log"), [(1, 1, 1, 1), (60, 6, 6, 1), (500, 50, 50, 1), (20_000, 2000, 500, 20)]
)
def test_default_intervals_follow_from_the_number_of_steps(steps, evaluate, save, log):
    assert settings(steps=steps).intervals() == (evaluate, save, log)
    assert settings(steps=steps, eval_every=3, save_every=4, log_every=5).intervals() == (3, 4, 5)


@pytest.mark.parametrize("name", ["steps", "batch_size", "gradient_accumulation_steps", "seq_len", "eval_every"])
def test_number_beyond_every_count_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at most"):
        TrainSettings(model="m", data="d", out="o", **{name: 10**20}).check()


def test_whole_number_of_a_method_that_no_tensor_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"^r must be smaller than 2\^63"):
        settings(method="lora", method_settings={"r": 10**20}).check()


def test_empty_validation_data_are_refused():
    with pytest.raises(ConfigError, match="eval_data is empty"):
        TrainSettings(model="m", data="d", out="o", eval_data="").check()
