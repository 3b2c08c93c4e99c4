"""Measurements of loss curves, compared with explicit sums and NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.compare.measurements.convergence import (
    count_spikes,
    derive,
    exponential_mean,
    first_at_or_below,
    has_diverged,
)

CURVE = [
    [0, None, 5.0, 0.0],
    [10, 4.5, None, 1.0],
    [20, 4.0, 4.0, 2.0],
    [60, 3.0, 3.0, 6.0],
    [80, 2.5, 3.5, 8.0],
]

losses = st.floats(0.01, 20)


def test_measurements_of_a_small_curve():
    found = derive(CURVE, [1.0, 1.2, 0.8, 30.0], tokens_per_step=100)
    # 20 steps at 4.5, 40 at 3.5, 20 at 3.25
    assert found["auc"] == pytest.approx((90 + 140 + 65) * 100)
    assert found["auc_per_token"] == pytest.approx(295 / 80)
    assert (found["valid_loss_first"], found["valid_loss_last"]) == (5.0, 3.5)
    assert (found["valid_loss_best"], found["best_step"]) == (3.0, 60)
    assert found["train_loss_last"] == 2.5
    assert found["spikes"] == 1
    assert found["diverged"] is False
    assert found["null_reasons"] == {}


@given(st.lists(st.tuples(st.integers(1, 50), losses), min_size=2, max_size=12), st.floats(1, 1e4))
def test_area_equals_numpy_trapezoid(points, tokens):
    steps = np.cumsum([gap for gap, _ in points])
    values = [loss for _, loss in points]
    curve = [[int(step), None, loss, 0.0] for step, loss in zip(steps, values, strict=True)]
    found = derive(curve, [], tokens)
    assert found["auc"] == pytest.approx(np.trapezoid(values, steps * tokens))
    assert min(values) - 1e-9 <= found["auc_per_token"] <= max(values) + 1e-9


def test_target_is_reached_at_an_evaluation_without_interpolation():
    assert first_at_or_below(CURVE, 4.0) == (20, 2.0)
    assert first_at_or_below(CURVE, 3.9) == (60, 6.0)  # crossed between 20 and 60, known at 60
    assert first_at_or_below(CURVE, 6.0) == (0, 0.0)
    assert first_at_or_below(CURVE, 2.9) is None


def test_nan_loss_reaches_no_target():
    assert first_at_or_below([[0, None, math.nan, 0.0], [1, None, 1.0, 3.0]], 2.0) == (1, 3.0)


@given(st.lists(losses, min_size=1, max_size=60), st.floats(0, 0.99))
def test_exponential_mean_equals_weighted_average(values, keep):
    weights = keep ** np.arange(len(values))[::-1]
    assert exponential_mean(values, keep)[-1] == pytest.approx(np.average(values, weights=weights))


def test_exponential_mean_of_a_constant():
    assert exponential_mean([3.0] * 5) == pytest.approx([3.0] * 5)


def test_spikes_are_counted_against_earlier_norms():
    assert count_spikes([]) == 0
    assert count_spikes([100.0, 1.0, 1.0]) == 0  # the first has nothing before it
    assert count_spikes([1.0, 10.0]) == 0  # 10 times is not above 10 times
    assert count_spikes([1.0, 10.1]) == 1
    assert count_spikes([1.0, 11.0, 1.0, 11.0]) == 2
    assert count_spikes([1.0, 1.0, 1.0, 9.0, 12.0]) == 1  # the middle one of those before counts, not the last
    assert count_spikes([1.0, math.nan, math.inf, 1.0]) == 2


@pytest.mark.parametrize(
    ("curve", "diverged"),
    [
        (CURVE, False),
        ([[0, None, 2.0, 0], [1, None, 4.0, 0]], False),
        ([[0, None, 2.0, 0], [1, None, 4.1, 0]], True),
        ([[0, None, 2.0, 0], [1, None, 9.0, 0], [2, None, 2.0, 0]], False),  # it came back
        ([[0, None, 2.0, 0], [1, math.nan, None, 0], [2, None, 2.0, 0]], True),
        ([[0, None, 2.0, 0], [1, None, math.inf, 0]], True),
        ([[1, 2.0, None, 0], [2, 5.0, None, 0]], True),  # without validation losses: training losses
        ([], False),
    ],
)
def test_divergence(curve, diverged):
    assert has_diverged(curve) is diverged


@pytest.mark.parametrize("curve", [[], [[1, 3.0, None, 0.1]], [[0, None, 3.0, 0.0]]])
def test_missing_measurements_have_reasons(curve):
    found = derive(curve, [], 100)
    reasons = found.pop("null_reasons")
    assert {name for name, value in found.items() if value is None} == set(reasons)
    assert reasons.get("auc") == "fewer than two validation losses"


def test_best_loss_of_a_diverged_curve():
    found = derive([[0, None, 5.0, 0], [1, None, math.nan, 0], [2, None, 4.0, 0]], [], 1)
    assert (found["valid_loss_best"], found["best_step"], found["diverged"]) == (4.0, 2, True)
