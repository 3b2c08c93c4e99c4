"""Scores of classes and numbers: equal to scikit-learn's and scipy's, and defined where those are
not.
"""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, rankdata
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from qpeft_lab.metrics import accuracy, f1, mcc, pearson, spearman

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_scores_of_classes_equal_those_of_scikit_learn(n_classes):
    labels, predictions = DRAW.integers(0, n_classes, (2, 200)).tolist()
    average = "binary" if n_classes == 2 else "macro"
    assert f1(labels, predictions) == f1_score(labels, predictions, average=average)
    assert mcc(labels, predictions) == matthews_corrcoef(labels, predictions)
    assert accuracy(labels, predictions) == np.trace(confusion_matrix(labels, predictions)) / 200


def test_f1_of_two_classes_is_that_of_the_second_and_mcc_of_equal_predictions_is_zero():
    assert f1([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(2 / 3)
    assert f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(4 / 5)
    assert f1([0, 0], [0, 0], n_classes=2) == 0.0
    # class 2 does not occur
    assert f1([0, 1, 0, 1], [0, 1, 1, 1], n_classes=3) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert mcc([0, 1, 0, 1], [1, 1, 1, 1]) == mcc([1, 1], [1, 1]) == 0.0


def test_correlations_are_those_of_values_and_of_ranks():
    labels = DRAW.integers(0, 6, 100) / 1.0  # with equal values
    predictions = labels**3 + DRAW.normal(size=100)
    assert pearson(labels, predictions) == pytest.approx(
        np.corrcoef(labels, predictions)[0, 1], abs=1e-12
    )

    ranks = rankdata(labels), rankdata(predictions)
    assert spearman(labels, predictions) == pytest.approx(pearsonr(*ranks).statistic, abs=1e-12)
    assert (
        spearman([1, 2, 3], [1, 10, 1000]) == 1.0 == kendalltau([1, 2, 3], [1, 10, 1000]).statistic
    )
    assert pearson([1, 2, 3], [1, 10, 1000]) < 1.0


@pytest.mark.parametrize(
    "labels, predictions",
    [
        ([1.0, 2.0, 3.0], [0.3] * 3),
        ([2.0] * 3, [1.0, 2.0, 3.0]),
        ([1.0], [1.0]),
        ([1.0, 2.0], [math.nan, 1.0]),
    ],
)
def test_undefined_correlations_are_none(labels, predictions):
    assert pearson(labels, predictions) is None
    assert spearman(labels, predictions) is None
