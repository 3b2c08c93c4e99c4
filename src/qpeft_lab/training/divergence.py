"""Whether a run diverges while it runs, and the learning rate to try instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

_FEWEST = 4  # losses in a window, for a standard deviation
_DEVIATIONS = 3.0  # above which chance alone would be a rare reason
_MULTIPLE = 1.5  # of the first loss, beyond the noise of any batch
_TENTHS = 6  # after which a run must have learned; one at a good rate had not after five
_SHARE = 0.02  # of the first validation loss; that of small changes of a model is smaller


def lower(learning_rate: float) -> float:
    """A third of the learning rate, in one digit."""
    return float(f"{learning_rate / 3:.1g}")


def symptom(losses: Sequence[float], scores: Sequence[float], tenth: int) -> str | None:
    """What suggests that the learning rate is too high; None if nothing does.

    Compared with the start, by the training losses after the first tenth of the steps and by the
    validation loss, the run must not be worse, and after six tenths it must be better.

    Args:
        losses: Training losses, one for each step so far, or each so many steps.
        scores: Validation losses so far; the first is before the first step.
        tenth: So many training losses come from a tenth of the run.
    """
    if scores and scores[-1] > (1 + _SHARE) * scores[0]:
        return f"the validation loss is {scores[-1]:.3f}, and was {scores[0]:.3f} at the start"
    if has_risen(losses, tenth):
        return "the training loss is higher than at the start"
    latest = losses[-max(_FEWEST, tenth * 5 // 2) :]
    if len(losses) >= _TENTHS * tenth and fmean(latest) >= fmean(losses[: _window(tenth)]):
        return "the training loss is no lower than at the start"
    return None


def has_risen(losses: Sequence[float], tenth: int) -> bool:
    """Whether training losses are above those at the start.

    The first half of the first tenth of the run, most of it warmup, is compared with as many of the
    latest. Batches differ, so the means must differ by three standard errors, unless the latest are
    half as high again as the first one: where a run blows up in its first steps, these are among
    the first half.
    """
    n = _window(tenth)
    if len(losses) < 2 * n:
        return False
    first = losses[:n]
    latest = losses[-n:]
    error = math.sqrt((variance(first) + variance(latest)) / n)
    has_blown_up = fmean(latest) > _MULTIPLE * losses[0]
    return has_blown_up or fmean(latest) - fmean(first) > _DEVIATIONS * error


def _window(tenth: int) -> int:
    return max(_FEWEST, tenth // 2)
