"""The training runs that test whether the circuit matters are a study made from the run."""

import json

import pytest
from synthetic_study import summary_of, write_synthetic_study

from qpeft.diagnostics.retraining import CircuitMatters, found_before, study_of
from qpeft.errors import CheckpointError, ConfigError
from qpeft.training.run_folder import RunFolder
from qpeft.training.settings import TrainSettings


def settings(**changes):
    values = {
        "model": "base",
        "data": "text.txt",
        "out": "run",
        "method_settings": {"r": 4, "budget": 0.25},
        "steps": 7,
        "lr": 3e-3,
        "batch_size": 2,
        "seq_len": 32,
        "warmup": 0.1,
        "weight_decay": 0.01,
    }
    return TrainSettings(**{**values, **changes})


def test_study_repeats_the_run_with_every_feature_source():
    study = study_of(settings(), seeds=(0, 4))
    sources = {m.key: m.settings.get("feature_source", "qnn") for m in study.methods if m.method == "qpa"}
    assert sources == {
        "qnn": "qnn",
        "qnn_frozen": "qnn_frozen",
        "free": "free",
        "random": "random",
        "no_feature": "none",
    }
    assert all(m.against == "qnn" for m in study.methods if m.role == "control")
    assert study.reference == "qnn"
    assert (study.base, study.data, study.seeds) == ("base", "text.txt", [0, 4])
    assert study.tuning.grid == [1.0], "no learning rate is tuned"
    assert {m.lr for m in study.methods if m.method == "qpa"} == {3e-3}
    assert all(m.settings["budget"] == 0.25 for m in study.methods if m.method == "qpa")
    training = study.training
    assert (training.steps, training.batch_size, training.seq_len) == (7, 2, 32)
    assert (training.warmup, training.weight_decay) == (0.1, 0.01)
    assert study_of(settings(), (0,), steps=3).training.steps == 3
    assert study_of(settings(host="prefix"), (0,)).methods[1].host == "prefix"


def test_backend_of_the_run_is_used_for_circuits_only():
    study = study_of(settings(backend_settings={"shots": 256}), (0,))
    with_backend = [m.key for m in study.methods if m.backend]
    assert with_backend == ["qnn", "qnn_frozen"], "a control without a circuit has no backend"
    assert study.methods[1].backend == {"shots": 256}
    simulator = {"backend": "pennylane:default.mixed", "noise": 0.01}
    assert study_of(settings(backend_settings=simulator), (0,)).methods[1].backend == simulator


def test_device_of_the_user_is_replaced_by_simulated_shots():
    mine = {"backend": "mine.py:device", "shots": 256, "shot_budget": 10_000, "gradient": "spsa"}
    study = study_of(settings(backend_settings=mine), (0,))
    assert [m.backend for m in study.methods if m.backend] == [{"shots": 256, "gradient": "spsa"}] * 2


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({"method": "lora", "method_settings": {}}, (0,), "trained lora"),
        ({"method_settings": {"feature_source": "free"}}, (0,), "qpa with feature_source free"),
        ({}, (), "seeds"),
        ({}, (1, 1), "duplicate seed"),
        ({}, (-1,), "greater than or equal to 0"),
        ({"steps": 0}, (0,), "steps: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_invalid_study_is_refused(changes, seeds, message):
    with pytest.raises(ConfigError, match=message):
        study_of(settings(**changes), seeds)


def test_damaged_run_folder_is_refused(tmp_path):
    assert found_before(tmp_path) is None
    folder = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match="it is not a run folder"):
        folder.settings()
    folder.claim(settings(), {})
    assert folder.settings() == settings()
    record = json.loads(folder.config.read_text())
    del record["settings"]["model"]
    folder.config.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="damaged"):
        folder.settings()


def test_sentence_is_the_headline_of_the_study(tmp_path):
    summary = summary_of(write_synthetic_study(tmp_path / "study"))
    found = CircuitMatters(tmp_path, summary)
    assert found.controls
    assert found.sentence.startswith(summary.headlines[0])
    assert "seeds, " in found.sentence
