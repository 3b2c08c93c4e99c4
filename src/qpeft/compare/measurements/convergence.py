"""Measurements of loss curves and gradient norms.

A curve is a list of [step, training loss | None, validation loss | None, seconds], one point per logged step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

Point = Sequence[Any]

SMOOTHING = 0.98
SPIKE = 10.0  # times the running median of gradient norms
DIVERGED = 2.0  # times the first loss


def derive(curve: Sequence[Point], grad_norms: Sequence[float], tokens_per_step: float) -> dict[str, Any]:
    """The fields of `rows.Convergence`. Missing ones are None, with a reason under `null_reasons`.

    `auc` is the area under the validation loss over the tokens seen, by trapezoids, in nats times tokens;
    `auc_per_token` is this area divided by the tokens, in nats. `train_loss_smoothed` is the exponential mean at the
    end. For `spikes` and `diverged` see `count_spikes` and `has_diverged`.
    """
    valid = [(point[0], point[2]) for point in curve if point[2] is not None]
    train = [point[1] for point in curve if point[1] is not None]
    area = _area(valid)
    best = min(valid, key=lambda at: (math.isnan(at[1]), at[1]), default=None)
    steps = valid[-1][0] - valid[0][0] if valid else 0
    found = {
        "auc": area * tokens_per_step if steps else None,
        "auc_per_token": area / steps if steps else None,
        "valid_loss_first": valid[0][1] if valid else None,
        "valid_loss_last": valid[-1][1] if valid else None,
        "valid_loss_best": best[1] if best else None,
        "best_step": best[0] if best else None,
        "train_loss_last": train[-1] if train else None,
        "train_loss_smoothed": exponential_mean(train)[-1] if train else None,
        "spikes": count_spikes(grad_norms),
        "diverged": has_diverged(curve),
    }
    reasons = {name: _REASONS.get(name, "no validation loss") for name, value in found.items() if value is None}
    return {**found, "null_reasons": reasons}


_REASONS = {
    **dict.fromkeys(("auc", "auc_per_token"), "fewer than two validation losses"),
    **dict.fromkeys(("train_loss_last", "train_loss_smoothed"), "no training loss"),
}


def first_at_or_below(curve: Sequence[Point], target: float) -> tuple[int, float] | None:
    """Step and seconds of the first evaluation with a loss of at most `target`; nothing is interpolated."""
    for step, _, valid, seconds in curve:
        if valid is not None and valid <= target:
            return step, seconds
    return None


def exponential_mean(values: Sequence[float], keep: float = SMOOTHING) -> list[float]:
    """m_t = sum_k keep^k v_(t-k) / sum_k keep^k."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        means.append(total / weight)
    return means


def count_spikes(grad_norms: Sequence[float]) -> int:
    """Steps whose gradient norm is above 10 times the median of the finite norms before it, or is not finite."""
    before: list[float] = []
    spikes = 0
    for norm in grad_norms:
        if not math.isfinite(norm):
            spikes += 1
            continue
        spikes += bool(before) and norm > SPIKE * median(before)
        before.append(norm)
    return spikes


def has_diverged(curve: Sequence[Point]) -> bool:
    """Whether a loss is not finite, or the last validation loss (or else training loss) is above 2 times the first."""
    losses = [loss for point in curve for loss in point[1:3] if loss is not None]
    if not all(map(math.isfinite, losses)):
        return True
    column = 2 if any(point[2] is not None for point in curve) else 1
    known = [point[column] for point in curve if point[column] is not None]
    return bool(known) and known[-1] > DIVERGED * known[0]


def _area(points: Sequence[tuple[int, float]]) -> float:
    """Trapezoids under (step, loss)."""
    return sum((after[0] - before[0]) * (before[1] + after[1]) / 2 for before, after in pairwise(points))
