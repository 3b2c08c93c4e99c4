"""Means, paired differences, Holm's correction and verdicts."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft_lab.compare.stats import (
    BETTER,
    NO_DIFFERENCE,
    PRELIMINARY,
    WORSE,
    compare,
    describe,
    holm,
    paired_difference,
)

losses = st.floats(min_value=0.1, max_value=20).map(lambda x: round(x, 6))


def by_seed(values):
    return dict(enumerate(map(float, values)))


@given(st.lists(losses, min_size=1, max_size=9))
def test_mean_and_sample_standard_deviation(values):
    found = describe(by_seed(values))
    assert found is not None
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-13)
    if len(values) == 1:
        assert found.sd is None
    else:
        assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-14)


@given(st.lists(st.tuples(losses, losses), min_size=3, max_size=9))
@settings(max_examples=50)  # the first call imports SciPy
def test_interval_and_p_value_are_those_of_the_paired_t_test(pairs):
    from scipy.stats import ttest_rel

    x, y = map(np.array, zip(*pairs, strict=True))
    if np.ptp(x - y) < 1e-6:
        return  # SciPy warns of a precision that is lost
    found = paired_difference(by_seed(x), by_seed(y), "y", lower_is_better=True)
    expected = ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-8, abs=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7)


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    """A hypothesis is rejected if Bonferroni rejects every set of hypotheses that contains it."""
    sets = [set(s) for size in range(len(p_values)) for s in combinations(range(len(p_values)), size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in range(len(p_values))
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize(("lower_is_better", "verdict"), [(True, WORSE), (False, BETTER)])
def test_direction_of_the_metric(lower_is_better, verdict):
    found = paired_difference(by_seed([2.0, 3.1, 4.2]), by_seed([1.0, 2.0, 3.0]), "y", lower_is_better)
    assert found is not None
    assert found.verdict == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, NO_DIFFERENCE), (1.0, WORSE)])
def test_difference_without_spread_is_not_significant(shift, verdict):
    others = {seed: value - shift for seed, value in enumerate([2.0, 3.0, 4.0])}
    found = paired_difference(by_seed([2.0, 3.0, 4.0]), others, "y", lower_is_better=True)
    assert found is not None
    assert (found.mean, found.low, found.high, found.p, found.verdict) == (shift, shift, shift, 1.0, verdict)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_are_preliminary(n):
    found = paired_difference(by_seed([9.0, 9.1][:n]), by_seed([1.0, 1.0][:n]), "y", lower_is_better=True)
    assert found is not None
    assert (found.verdict, found.p, found.n) == (PRELIMINARY, None, n)
    assert (found.low is None) == (n == 1)


def test_pairs_are_the_common_seeds():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {1: 1.0, 2: 1.0, 3: 9.0}, "y", lower_is_better=True)
    assert found is not None
    assert (found.n, found.mean) == (2, 1.5)
    assert paired_difference({0: 1.0}, {1: 1.0}, "y", lower_is_better=True) is None


def test_holm_can_reject_the_verdict_of_the_interval():
    values = {"lora": by_seed([0, 0, 0]), "weak": by_seed([0.03, 0.04, 0.05]), "weaker": by_seed([0.02, 0.03, 0.05])}
    found = compare([("weak", "lora"), ("weaker", "lora")], values, set(), lower_is_better=True)
    weak, weaker = found["weak", "lora"], found["weaker", "lora"]
    assert (weak.p_holm, weak.verdict) == (2 * weak.p, WORSE)
    assert (weaker.verdict, weaker.p_holm) == (NO_DIFFERENCE, weaker.p)
    many = [(f"m{i}", "lora") for i in range(20)]
    found = compare(many, {"lora": values["lora"], **dict.fromkeys((m for m, _ in many), values["weak"])}, set(), True)
    assert {(d.p_holm, d.verdict) for d in found.values()} == {(20 * weak.p, NO_DIFFERENCE)}


def test_pair_and_its_reverse_count_once():
    values = {"a": by_seed([1.0, 1.1, 1.3]), "b": by_seed([2.0, 2.4, 2.1])}
    one = compare([("a", "b")], values, set(), lower_is_better=True)
    both = compare([("a", "b"), ("b", "a"), ("a", "b")], values, set(), lower_is_better=True)
    assert both["a", "b"] == one["a", "b"]
    assert both["b", "a"].p_holm == one["a", "b"].p_holm


@pytest.mark.parametrize(("lost", "verdict"), [(set(), BETTER), ({"lora"}, BETTER), ({"qpa"}, NO_DIFFERENCE)])
def test_verdict_never_favors_a_method_with_a_failed_seed(lost, verdict):
    values = {"lora": by_seed([2.0, 2.1, 2.2]), "qpa": by_seed([1.0, 1.11, 1.2])}
    found = compare([("qpa", "lora")], values, lost, lower_is_better=True)["qpa", "lora"]
    assert found.verdict == verdict
    turned = compare([("lora", "qpa")], values, lost, lower_is_better=True)["lora", "qpa"]
    assert turned.verdict == {BETTER: WORSE}.get(verdict, verdict)
