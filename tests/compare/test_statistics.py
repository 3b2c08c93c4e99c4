"""Means, paired differences, Holm's correction and verdicts; their recomputation by an independent
script.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_study import drop_rows, write_report_of
from scipy.stats import t as student
from scipy.stats import ttest_rel

import recompute_summary as recompute
from qpeft_lab.compare import report
from qpeft_lab.compare.stats import (
    BETTER,
    NO_DIFFERENCE,
    PRELIMINARY,
    WORSE,
    compare,
    holm,
    paired_difference,
)

losses = st.floats(min_value=0.1, max_value=20).map(lambda x: round(x, 6))


def by_seed(values):
    return dict(enumerate(map(float, values)))


@given(st.lists(st.tuples(losses, losses), min_size=3, max_size=9))
def test_interval_and_p_value_are_those_of_the_paired_t_test(pairs):
    x, y = map(np.array, zip(*pairs, strict=True))
    if np.ptp(x - y) < 1e-6:
        return  # SciPy warns of a precision that is lost
    difference = paired_difference(by_seed(x), by_seed(y), "y", lower_is_better=True)
    expected = ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)

    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-8, abs=1e-10
    )
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-7)


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    """A hypothesis is rejected if Bonferroni rejects every set of hypotheses that contains it."""
    sets = [
        set(s)
        for size in range(len(p_values))
        for s in combinations(range(len(p_values)), size + 1)
    ]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        for i in range(len(p_values))
    ]

    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("shift, verdict", [(0.0, NO_DIFFERENCE), (1.0, WORSE)])
def test_difference_without_spread_is_not_significant(shift, verdict):
    others = {seed: value - shift for seed, value in enumerate([2.0, 3.0, 4.0])}
    difference = paired_difference(by_seed([2.0, 3.0, 4.0]), others, "y", lower_is_better=True)
    assert difference is not None
    assert difference.mean == shift
    assert difference.low == shift
    assert difference.high == shift
    assert difference.p == 1.0
    assert difference.verdict == verdict


def test_pairs_are_the_common_seeds():
    difference = paired_difference(
        {0: 1.0, 1: 2.0, 2: 3.0}, {1: 1.0, 2: 1.0, 3: 9.0}, "y", lower_is_better=True
    )
    assert difference is not None
    assert difference.n == 2  # fewer than three
    assert difference.mean == 1.5
    assert difference.verdict == PRELIMINARY
    assert difference.p is None
    assert paired_difference({0: 1.0}, {1: 1.0}, "y", lower_is_better=True) is None

    alone = paired_difference({0: 9.0}, {0: 1.0}, "y", lower_is_better=True)
    assert alone is not None
    assert alone.verdict == PRELIMINARY
    assert alone.low is None
    assert alone.p is None


def test_holm_can_reject_the_verdict_of_the_interval():
    values = {
        "lora": by_seed([0, 0, 0]),
        "weak": by_seed([0.03, 0.04, 0.05]),
        "weaker": by_seed([0.02, 0.03, 0.05]),
    }
    found = compare(dict.fromkeys(("weak", "weaker"), "lora"), values, set(), lower_is_better=True)
    weak = found["weak"]
    weaker = found["weaker"]

    assert weak.p_holm == 2 * weak.p
    assert weak.verdict == WORSE
    assert weaker.verdict == NO_DIFFERENCE
    assert weaker.p_holm == weaker.p

    many = [f"m{i}" for i in range(20)]
    found = compare(
        dict.fromkeys(many, "lora"), {**values, **dict.fromkeys(many, values["weak"])}, set(), True
    )
    assert {(d.p_holm, d.verdict) for d in found.values()} == {(20 * weak.p, NO_DIFFERENCE)}


@pytest.mark.parametrize(
    "lost, verdict", [(set(), BETTER), ({"lora"}, BETTER), ({"qpa"}, NO_DIFFERENCE)]
)
def test_verdict_never_favors_a_method_with_a_failed_seed(lost, verdict):
    values = {"lora": by_seed([2.0, 2.1, 2.2]), "qpa": by_seed([1.0, 1.11, 1.2])}
    assert compare({"qpa": "lora"}, values, lost, lower_is_better=True)["qpa"].verdict == verdict
    turned = compare({"lora": "qpa"}, values, lost, lower_is_better=True)["lora"]
    assert turned.verdict == {BETTER: WORSE}.get(verdict, verdict)


# recomputation


@pytest.fixture
def written(study_folder, monkeypatch):
    """A study with its tables, and an empty page."""
    monkeypatch.setattr(report, "page", lambda summary: "")
    write_report_of(study_folder)
    return study_folder


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30])
def test_students_distribution_equals_scipy(df):
    assert recompute.quantile(df) == pytest.approx(student.ppf(0.975, df), rel=1e-12)
    for value in (0.0, 0.3, 2.0, 9.0, 300.0):
        assert recompute.tail(value, df) == pytest.approx(2 * student.sf(value, df), rel=1e-10)


def change_cell(key, column, change):
    """Change a value of summary.csv."""

    def apply(folder):
        table = pd.read_csv(folder / "summary.csv", dtype=str, keep_default_na=False).set_index(
            "key"
        )
        table.loc[key, column] = change(table.loc[key, column])
        table.to_csv(folder / "summary.csv")

    return apply


def slightly(value):
    return repr(float(value) * (1 + 1e-7))


@pytest.mark.parametrize(
    "change",
    [
        *(
            change_cell("bias_only", name, slightly)
            for name in ("metric.mean", "metric.sd", "delta.low", "delta.high")
        ),
        change_cell("bias_only", "delta.p_holm", slightly),
        change_cell("qaa", "delta.verdict", lambda _: "better"),
        lambda folder: drop_rows(folder, "qaa", "seed2"),
    ],
)
def test_changed_table_or_rows_are_reported(written, capsys, change):
    change(written)
    assert recompute.main(written) == 1
    assert capsys.readouterr().out.startswith("summary.csv: ")


def test_recomputation_agrees_with_few_rows(written):
    drop_rows(written, "qpa", "seed[1-4]")
    drop_rows(written, "bias_only", "seed[2-4]")
    drop_rows(written, "qaa")
    write_report_of(written)
    assert recompute.main(written) == 0
