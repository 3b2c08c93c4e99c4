"""The order of adapters on another base: Spearman's correlation and its interval."""

import numpy as np
import pytest
from scipy.stats import rankdata

import recompute_tables
import suggest_tables


def test_correlation_of_a_kept_and_of_a_reversed_order():
    kept = suggest_tables.rank_correlation([1, 2, 3, 4, 5, 7], [10, 20, 21, 30, 50, 49])
    assert kept.value == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert kept.n == 6
    assert -1 < kept.low < kept.value < kept.high < 1
    turned = suggest_tables.rank_correlation([1, 2, 3, 4, 5, 7], [-10, -20, -21, -30, -50, -49])
    assert (turned.value, turned.low) == pytest.approx((-kept.value, -kept.high))


@pytest.mark.parametrize("strength", [0.0, 0.6, 0.9])
def test_interval_contains_the_correlation_of_a_normal_population(strength):
    """As many adapters as the tables have, drawn 400 times."""
    draw = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(strength / 2)  # Spearman's, of two normal variables
    covered = []
    for _ in range(400):
        first, noise = draw.normal(size=(2, 12))
        second = strength * first + np.sqrt(1 - strength**2) * noise
        correlation = suggest_tables.rank_correlation(first, second)
        covered.append(correlation.low <= truth <= correlation.high)

    assert np.mean(covered) > 0.9


def test_recomputed_ranks_share_the_mean_place_of_equal_values():
    values = [0.3, 0.1, 0.3, 0.2]
    assert recompute_tables.ranks(values) == [rank - 1 for rank in rankdata(values)]
