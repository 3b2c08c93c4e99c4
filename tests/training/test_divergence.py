"""Runs that diverge say so while they run."""

import re
from pathlib import Path

import pytest
from runs import Recorder

from qpeft import methods
from qpeft.methods import Method
from qpeft.methods.method import MeasuredBase, MeasuredRate
from qpeft_lab import train
from qpeft_lab.training.divergence import has_risen, lower
from qpeft_lab.training.run_folder import RunFolder

NOTE = "at the start. The learning rate"


def noted(progress):
    """The steps that were done when the note of divergence came."""
    texts = [event if isinstance(event, str) else event[0] for event in progress.events]
    place = next((i for i, text in enumerate(texts) if NOTE in text), None)
    return None if place is None else texts[:place].count("step")


def test_run_that_diverges_says_so_before_it_ends_and_names_a_lower_rate(settings):
    progress = Recorder()
    rates = {"method": "full", "lr": 3.0, "warmup": 0.0, "lr_schedule": "constant"}
    train(settings(steps=40, eval_every=39, **rates), progress)
    assert noted(progress) == 8  # with a tenth of four steps: two windows of four losses
    (note,) = [event for event in progress.events if isinstance(event, str) and NOTE in event]
    assert "--lr 1 in another folder" in note


def test_validation_loss_above_that_at_the_start_is_noted(settings):
    progress = Recorder()
    train(settings(eval_every=1, method="full", lr=3.0, warmup=0.0), progress)
    assert noted(progress) < 7


def test_run_that_learns_is_not_warned(settings):
    progress = Recorder()
    train(settings(steps=40, eval_every=10, lr=1e-2), progress)
    assert noted(progress) is None


def test_losses_have_risen_only_beyond_their_noise():
    noise = [0.1, -0.1, 0.05, -0.05]
    start = [3 + one for one in noise]
    assert not has_risen([*start, *start], 8)
    assert not has_risen([*start, *(3.1 + one for one in noise)], 8)
    assert has_risen([*start, *(3.5 + one for one in noise)], 8)
    assert has_risen([5.7, 96.0, 196.0, 164.0, 161.0, 270.0, 226.0, 242.0], 8)
    assert not has_risen([3.0, 3.0, 9.0, 9.0], 8)  # too few
    assert lower(1e-3) == 3e-4


def test_run_without_a_rate_has_that_of_its_method_and_keeps_it(settings, monkeypatch):
    progress = Recorder()
    train(settings(lr=None, steps=2), progress)
    (note,) = [event for event in progress.events if "learning rate" in event]
    assert re.match(r"learning rate 0\.01, that of method lora on bases of up to 10 million", note)
    assert RunFolder(Path(settings().out)).recorded()[0].lr == 0.01
    lora = methods.get("lora")
    monkeypatch.setitem(vars(lora), "learning_rate", 0.5)  # of a later version
    assert train(settings(lr=None, steps=2)).already_finished


RATED = Method(
    key="x",
    title="x",
    learning_rate=0.1,
    measured_rates=(
        MeasuredRate(0.01, MeasuredBase("a large base", 100_000_000)),
        MeasuredRate(0.02, MeasuredBase("an encoder", 20_000_000), "text-classification"),
    ),
)


@pytest.mark.parametrize(
    "task, parameters, value, is_measured",
    [
        ("causal-lm", 260_000, 0.1, True),
        ("causal-lm", 11_000_000, 0.1, False),
        ("causal-lm", 124_000_000, 0.01, True),
        ("causal-lm", 7_000_000_000, 0.01, False),
        ("text-classification", 110_000_000, 0.02, False),
        ("image-classification", 110_000_000, 0.1, False),
    ],
)
def test_learning_rate_is_that_of_the_nearest_measured_base(task, parameters, value, is_measured):
    rate = RATED.rate_for(task, parameters)
    assert rate.value == value
    assert ("none of its size was measured" not in rate.source) == is_measured
