"""Runs that diverge say so while they run."""

import re
from pathlib import Path

import pytest
from runs import Recorder

from qpeft import methods
from qpeft.methods import Method
from qpeft.methods.method import MeasuredBase, MeasuredRate
from qpeft_lab import train
from qpeft_lab.training.divergence import has_risen, lower, symptom
from qpeft_lab.training.run_folder import RunFolder

NOTE = "may be too high; Ctrl-C"


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


# of MiniLM on SST-2 with QPA of 2,000 parameters, 16 sentences a step: the first six tenths of 40
# steps at 3e-3, which stayed at chance, and of 80 at 1e-3, which reached 73 %
AT_CHANCE = [0.699, 0.693, 0.694, 0.703, 0.706, 0.685, 0.739, 0.687, 0.671, 0.714]
AT_CHANCE += [0.755, 0.668, 0.68, 0.77, 0.695, 0.705, 0.713, 0.697, 0.738, 0.711]
AT_CHANCE += [0.702, 0.682, 0.69, 0.695]
LEARNING = [0.699, 0.693, 0.693, 0.693, 0.699, 0.695, 0.697, 0.69, 0.699, 0.697]
LEARNING += [0.695, 0.69, 0.712, 0.688, 0.695, 0.684, 0.682, 0.706, 0.678, 0.697]
LEARNING += [0.712, 0.661, 0.699, 0.669, 0.65, 0.837, 0.73, 0.75, 0.677, 0.661]
LEARNING += [0.696, 0.656, 0.71, 0.655, 0.736, 0.722, 0.719, 0.676, 0.639, 0.693]
LEARNING += [0.685, 0.629, 0.672, 0.619, 0.648, 0.669, 0.628, 0.572]


def test_run_that_has_learned_nothing_after_six_tenths_is_noted():
    assert symptom(AT_CHANCE, [0.692], 4) == "the training loss is no lower than at the start"
    assert [symptom(LEARNING[:n], [0.692], 8) for n in (8, 16, 24, 32, 40, 48)] == [None] * 6
    assert symptom(LEARNING, [0.692, 0.693], 8) is None
    assert "is 0.710, and was 0.692" in symptom(LEARNING, [0.692, 0.71], 8)


def test_run_without_a_rate_has_that_of_its_method_and_keeps_it(settings, monkeypatch):
    progress = Recorder()
    train(settings(lr=None, steps=2), progress)
    (note,) = [event for event in progress.events if "learning rate" in event]

    assert re.match(
        r"learning rate 0\.01, the default of method lora on bases of up to 10 million", note
    )
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
