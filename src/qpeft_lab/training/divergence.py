"""Whether a run diverges while it runs, and the learning rate to try instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

_FEWEST = 4  # losses in a window, for a standard deviation
_DEVIATIONS = 3.0  # above which chance alone would be a rare reason
_MULTIPLE = 1.5  # of the first loss, beyond the noise of any batch


def lower(learning_rate: float) -> float:
    """A third of the learning rate, in one digit."""
    return float(f"{learning_rate / 3:.1g}")


def has_risen(losses: Sequence[float], tenth: int) -> bool:
    """Whether training losses, one for each batch so far, are above those at the start.

    The first half of the first tenth of the run, most of it warmup, is compared with as many of the
    latest. Batches differ, so the means must differ by three standard errors, unless the latest are
    half as high again as the first one: where a run blows up in its first steps, these are among
    the first half.
    """
    n = max(_FEWEST, tenth // 2)
    if len(losses) < 2 * n:
        return False
    first, latest = losses[:n], losses[-n:]
    error = math.sqrt((variance(first) + variance(latest)) / n)
    has_blown_up = fmean(latest) > _MULTIPLE * losses[0]
    return has_blown_up or fmean(latest) - fmean(first) > _DEVIATIONS * error
