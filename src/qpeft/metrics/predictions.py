"""Scores of predicted classes and numbers, by scikit-learn and scipy, computed over all predictions at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qpeft.errors import DataError


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The fraction of predictions that are correct.

    Args:
        labels: The true classes.
        predictions: The predicted classes.

    Raises:
        DataError: no predictions, or another number of labels.
    """
    _check(labels, predictions)
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def mcc(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Matthews' correlation coefficient, from -1 to 1, of two or more classes.

    It is 0 if all predictions, or all labels, are the same class.

    Args:
        labels: The true classes.
        predictions: The predicted classes.

    Raises:
        DataError: no predictions, or another number of labels.
    """
    from sklearn.metrics import matthews_corrcoef

    _check(labels, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class
        return float(matthews_corrcoef(labels, predictions))


def f1(labels: Sequence[int], predictions: Sequence[int], n_classes: int | None = None) -> float:
    """F1, from 0 to 1: of two classes that of class 1, as GLUE defines it; of more, the unweighted mean over classes.

    The mean is over the classes that occur. F1 is 0 where it is undefined.

    Args:
        labels: The true classes.
        predictions: The predicted classes.
        n_classes: The number of classes. Default: two if there is no class above 1.

    Raises:
        DataError: no predictions, or another number of labels.
    """
    from sklearn.metrics import f1_score

    _check(labels, predictions)
    is_binary = (n_classes or 1 + max(*labels, *predictions)) <= 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is never predicted
        return float(f1_score(labels, predictions, labels=[1] if is_binary else None, average="macro"))


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Pearson's correlation, from -1 to 1.

    None where it is undefined: for fewer than two values, equal labels or equal predictions, and values that are not
    finite.

    Args:
        labels: The true numbers.
        predictions: The predicted numbers.

    Raises:
        DataError: no predictions, or another number of labels.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Spearman's rank correlation, from -1 to 1; equal values share a rank. None where it is undefined, as `pearson`.

    Args:
        labels: The true numbers.
        predictions: The predicted numbers.

    Raises:
        DataError: no predictions, or another number of labels.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _correlation(correlate: Callable[..., Any], labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    _check(labels, predictions)
    pair = [np.asarray(values, dtype=np.float64) for values in (labels, predictions)]
    if not all(np.isfinite(values).all() and np.ptp(values) > 0 for values in pair):
        return None
    found = float(correlate(*pair).statistic)
    return found if np.isfinite(found) else None


def _check(labels: Sequence[Any], predictions: Sequence[Any]) -> None:
    if not len(predictions):
        raise DataError("no predictions to score; give at least one with its label")
    if len(labels) != len(predictions):
        raise DataError(f"{len(predictions)} predictions and {len(labels)} labels; give a label for each prediction")
