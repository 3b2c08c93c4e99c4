"""Scores of predicted classes and numbers, by scikit-learn and scipy, computed over all predictions at once.

Each takes the true values and the predicted ones, as lists, arrays or tensors, and raises DataError if there are none,
if their numbers differ, and for values of another type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qpeft.checks import MOST
from qpeft.errors import DataError


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The fraction of `predictions` that equal their `labels`. Raises DataError for other types, as all scores."""
    true, predicted = _classes(labels, predictions)
    return float(np.mean(true == predicted))


def mcc(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Matthews' correlation of `labels` and `predictions`, from -1 to 1; 0 if all are the same. Raises DataError."""
    from sklearn.metrics import matthews_corrcoef

    pair = _classes(labels, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class
        return float(matthews_corrcoef(*pair))


def f1(labels: Sequence[int], predictions: Sequence[int], n_classes: int | None = None) -> float:
    """F1, from 0 to 1: of two classes that of class 1, as GLUE defines it; of more, the unweighted mean over classes.

    The mean is over the classes that occur in `labels` or `predictions`, and 0 where F1 is undefined. Without
    `n_classes`, there are two classes unless one is above 1. Raises DataError for values of another type.
    """
    from sklearn.metrics import f1_score

    pair = _classes(labels, predictions)
    is_binary = max(n_classes or 2, 1 + int(max(values.max() for values in pair))) <= 2
    no_division: Any = 0  # scikit-learn's types know the text "warn" alone
    return float(f1_score(*pair, labels=[1] if is_binary else None, average="macro", zero_division=no_division))


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Pearson's correlation of `labels` and `predictions`, from -1 to 1. Raises DataError for values of another type.

    None where it is undefined: fewer than two values, equal labels or equal predictions, values that are not finite.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Spearman's correlation of the ranks of `labels` and `predictions`; None and raises as `pearson`."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _correlation(correlate: Callable[..., Any], labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    pair = _pair(labels, predictions)
    if not all(np.isfinite(values).all() and np.ptp(values) > 0 for values in pair):
        return None
    found = float(correlate(*pair).statistic)
    return found if np.isfinite(found) else None


def _classes(labels: Sequence[int], predictions: Sequence[int]) -> list[np.ndarray]:
    """The two as arrays (N,) of whole numbers."""
    pair = _pair(labels, predictions)
    if not all(((values == np.floor(values)) & (np.abs(values) <= MOST)).all() for values in pair):  # not infinity
        raise DataError("a class is not a whole number; give the indices of the classes")
    return [values.astype(np.int64) for values in pair]


def _pair(*both: Any) -> list[np.ndarray]:
    """The labels and the predictions as float64 arrays (N,)."""
    try:  # NumPy has no bfloat16
        pair = [np.asarray(values.tolist() if hasattr(values, "tolist") else values, np.float64) for values in both]
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, sets, tensors without values
        pair = [np.zeros(0)]
    if pair[0].ndim != 1 or not len(pair[0]) or len({values.shape for values in pair}) > 1:
        raise DataError("labels and predictions must be lists or arrays with a number for each example, of one length")
    return pair
