"""The protocol of the evidence: intervals over seeds and blocks, verdicts, and winners."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from published_study import FILE
from scipy.stats import ttest_rel

import comparisons
import winners
from qpeft.errors import InputError
from qpeft_lab.compare.rate_search import RateSearch
from qpeft_lab.compare.study import Study
from qpeft_lab.compare.summary import load


def test_difference_of_constant_blocks_is_the_paired_t_test():
    ours, others = np.random.default_rng(0).normal(3.0, 0.1, (2, 10))
    difference = comparisons.difference(
        *({seed: [x] * 40 for seed, x in enumerate(xs)} for xs in (ours, others))
    )
    expected = ttest_rel(ours, others)

    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_interval_contains_the_variation_of_seeds_and_of_blocks():
    draw = np.random.default_rng(1)
    covered = []
    for _ in range(500):
        values = (
            0.01
            + draw.normal(0, 0.02, (10, 1))
            + draw.normal(0, 0.1, 60)
            + draw.normal(0, 0.02, (10, 60))
        )
        low, high = comparisons.difference(
            dict(enumerate(values)), dict.fromkeys(range(10), np.zeros(60))
        ).interval()
        covered.append(low <= 0.01 <= high)

    assert np.mean(covered) > 0.94


def test_verdicts():
    found = [
        comparisons.Paired(mean, error, 9)
        for mean, error in ((0.001, 1e-3), (-0.05, 1e-3), (9e-3, 1e-3), (0, 0.01))
    ]
    assert [*comparisons.verdicts(found, 0.01)] == ["equivalent", "better", "worse", "undecided"]


def test_winner_has_the_lowest_validation_loss_within_the_budget():
    losses = {
        "uni_400_a": [3.2, 3.1],
        "uni_400_b": [3.0, 3.2],
        "uni_400_c": [2.0, 2.0],
        "none": [1.0, 1.0],
    }
    results = [
        SimpleNamespace(
            key=key,
            label=key,
            search=RateSearch([0.1, 0.2], dict(zip([0.1, 0.2], found, strict=True))),
        )
        for key, found in losses.items()
    ]
    for one in results:
        size = 401 if one.key == "uni_400_c" else 400
        one.method = SimpleNamespace(trainable=size, method="lora", host="lora", settings={"r": 1})
    summary = MagicMock(study=load(FILE).study, results=results)
    summary["none"].mean.return_value = 4.0
    (((family, budget), one),) = winners.winners(summary).items()

    assert family == "uni"
    assert budget == 400
    assert one.result.key == "uni_400_b"
    assert one.lr == 0.1
    assert one.loss == 3.0
    assert one.gain == 1.0
    assert one.n == 2

    study = Study.model_validate(
        yaml.safe_load(yaml.safe_dump(winners.study_of_winners(summary, "final")))
    )
    assert [(method.key, method.lr) for method in study.methods] == [
        ("none", None),
        ("uni_400", 0.1),
    ]

    results[0].search.rates.append(0.3)  # not tried yet
    with pytest.raises(InputError, match="uni_400_a"):
        winners.winners(summary)


def test_difference_is_in_per_cent_of_the_gain_of_the_largest_lora():
    def result(key, trainable, losses):
        rows = {seed: {"test_losses": [loss - 0.1, loss + 0.1]} for seed, loss in enumerate(losses)}
        method = SimpleNamespace(method=key.partition("_")[0], trainable=trainable)
        metric = SimpleNamespace(mean=np.mean(losses))
        return SimpleNamespace(key=key, method=method, metric=metric, successes=rows)

    results = [
        result("none", 0, [5.0, 5.0, 5.0]),
        result("lora_128", 100, [4.5, 4.5, 4.5]),
        result("lora_400", 400, [4.0, 4.0, 4.0]),
        result("qpa_400", 400, [4.25, 4.26, 4.27]),
        result("uni_400", 400, [4.20, 4.20, 4.20]),
    ]
    by_key = {each.key: each for each in results}
    summary = type("Measured", (dict,), {"results": results})(by_key)
    difference = comparisons.compared(summary, "qpa_400", "uni_400")

    assert difference.mean == pytest.approx(6.0)
    assert difference.error == pytest.approx(1.0 / np.sqrt(3))
