"""Scores of predicted classes and numbers, by scikit-learn and scipy, computed over all predictions
at once.

Each takes the true values and the predicted ones, lists or arrays (n,) of one length; n is the
number of examples. Lists of different lengths raise ValueError, as in scikit-learn and scipy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The fraction of `predictions` (n,) that equal their `labels` (n,), from 0 to 1.

    For classes of very different frequencies use `mcc` or `f1`: always predicting the most frequent
    class has a high accuracy.
    """
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def mcc(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Matthews' correlation of `labels` (n,) and `predictions` (n,), from -1 to 1.

    It is 0 if all labels, or all predictions, are the same. Also for more than two classes.
    """
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings(action="ignore"):  # a single class
        return float(matthews_corrcoef(labels, predictions))


def f1(labels: Sequence[int], predictions: Sequence[int], n_classes: int | None = None) -> float:
    """F1, from 0 to 1: of two classes that of class 1, as GLUE defines it; of more, the unweighted
    mean over classes.

    The mean is over the classes that occur in `labels` or `predictions`, and 0 where F1 is
    undefined. Without `n_classes`, there are two classes unless one is above 1.
    """
    from sklearn.metrics import f1_score

    is_binary = max(n_classes or 2, 1 + max(*labels, *predictions)) <= 2
    no_division: Any = 0  # scikit-learn's types know the text "warn" alone
    only = [1] if is_binary else None
    return float(
        f1_score(labels, predictions, labels=only, average="macro", zero_division=no_division)
    )


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Pearson's correlation of `labels` (n,) and `predictions` (n,), from -1 to 1.

    None where it is undefined: fewer than two values, equal labels or equal predictions, values
    that are not finite.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Spearman's correlation, of the ranks of `labels` (n,) and `predictions` (n,), from -1 to 1.

    None where `pearson` is None.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _correlation(correlate: Callable[..., Any], *pair: Sequence[float]) -> float | None:
    if not all(np.isfinite(values).all() and np.ptp(values) > 0 for values in pair):
        return None
    statistic = float(correlate(*pair).statistic)
    return statistic if np.isfinite(statistic) else None
