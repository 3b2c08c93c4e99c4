"""Scores of predicted classes and numbers, by scikit-learn and scipy, computed over all predictions at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qpeft.checks import MOST, is_count
from qpeft.errors import DataError


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The fraction of predictions that are correct.

    Args:
        labels: The true classes.
        predictions: The predicted classes.

    Raises:
        DataError: no predictions, another number of labels, or values of another type.
    """
    true, predicted = _classes(labels, predictions)
    return float(np.mean(true == predicted))


def mcc(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Matthews' correlation coefficient, from -1 to 1, of two or more classes.

    It is 0 if all predictions, or all labels, are the same class.

    Args:
        labels: The true classes.
        predictions: The predicted classes.

    Raises:
        DataError: no predictions, another number of labels, or values of another type.
    """
    from sklearn.metrics import matthews_corrcoef

    pair = _classes(labels, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class
        return float(matthews_corrcoef(*pair))


def f1(labels: Sequence[int], predictions: Sequence[int], n_classes: int | None = None) -> float:
    """F1, from 0 to 1: of two classes that of class 1, as GLUE defines it; of more, the unweighted mean over classes.

    The mean is over the classes that occur. F1 is 0 where it is undefined.

    Args:
        labels: The true classes.
        predictions: The predicted classes.
        n_classes: The number of classes. Default: two if there is no class above 1.

    Raises:
        DataError: no predictions, another number of labels, or values of another type.
    """
    from sklearn.metrics import f1_score

    pair = _classes(labels, predictions)
    least = 1 + int(max(values.max() for values in pair))
    if n_classes is not None and not (is_count(n_classes) and n_classes >= least):
        raise DataError(f"n_classes must be a whole number of at least {max(least, 1)}, got {n_classes!r}")
    is_binary = (n_classes or least) <= 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is never predicted
        return float(f1_score(*pair, labels=[1] if is_binary else None, average="macro"))


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Pearson's correlation, from -1 to 1.

    None where it is undefined: for fewer than two values, equal labels or equal predictions, and values that are not
    finite.

    Args:
        labels: The true numbers.
        predictions: The predicted numbers.

    Raises:
        DataError: no predictions, another number of labels, or values of another type.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    """Spearman's rank correlation, from -1 to 1; equal values share a rank. None where it is undefined, as `pearson`.

    Args:
        labels: The true numbers.
        predictions: The predicted numbers.

    Raises:
        DataError: no predictions, another number of labels, or values of another type.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _correlation(correlate: Callable[..., Any], labels: Sequence[float], predictions: Sequence[float]) -> float | None:
    pair = [values.astype(np.float64) for values in _pair(labels, predictions)]
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


def _pair(labels: Sequence[float], predictions: Sequence[float]) -> list[np.ndarray]:
    """The two as arrays (N,) of numbers."""
    pair = [_numbers(values, what) for what, values in (("labels", labels), ("predictions", predictions))]
    n_labels, n_predictions = map(len, pair)
    if not n_predictions:
        raise DataError("no predictions to score; give at least one with its label")
    if n_labels != n_predictions:
        raise DataError(f"{n_predictions} predictions and {n_labels} labels; give a label for each prediction")
    return pair


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        found = np.asarray(values.tolist() if hasattr(values, "tolist") else values)  # NumPy has no bfloat16
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, tensors without values
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "biuf":  # sets, dicts and generators have no dimension
        raise DataError(f"{what} must be a list or array with a number for each example, got {type(values).__name__}")
    return found
