"""Speed of convergence: the evaluations at which a method first reaches 50, 80 and 95 % of the reference's gain.

The gain is the reference's initial validation loss minus its final one, each a mean over its seeds that succeeded. The
target for p % of it is the initial loss minus p % of the gain, equal for all methods and seeds. A seed reaches a target
at its first evaluation with a loss of at most the target; nothing is interpolated between evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from qpeft.compare.analysis.records import MethodRows
from qpeft.compare.analysis.statistics import describe
from qpeft.compare.analysis.types import Reached
from qpeft.compare.measurements.convergence import first_at_or_below
from qpeft.compare.rows import Curve

SHARES = (50, 80, 95)  # per cent of the reference's gain

_STEP, _SECONDS = 0, 3  # places in a point of a curve


def target_losses(reference: MethodRows) -> dict[int, float]:
    """The target validation losses by share; empty if no seed of the reference succeeded, or if it gained nothing."""
    curves = [reference.curves[seed] for seed in reference.successes if seed in reference.curves]
    losses = [[point[2] for point in curve if point[2] is not None] for curve in curves]
    start, end = (describe(dict(enumerate(found[place] for found in losses if found))) for place in (0, -1))
    if start is None or end is None or not start.mean > end.mean:
        return {}
    return {share: start.mean - share / 100 * (start.mean - end.mean) for share in SHARES}


def steps_to(rows: MethodRows, targets: Mapping[int, float]) -> dict[int, Reached]:
    """By share: the steps after which the seeds first reached the target."""
    return _reached(rows, targets, _STEP)


def seconds_to(rows: MethodRows, targets: Mapping[int, float]) -> dict[int, Reached]:
    """By share: the seconds after which the seeds first reached the target; empty for seeds on different hardware."""
    return {} if rows.on_mixed_hardware else _reached(rows, targets, _SECONDS)


def _reached(rows: MethodRows, targets: Mapping[int, float], place: int) -> dict[int, Reached]:
    """A seed that did not succeed has not reached the target; a seed without a row is left out."""
    curves: dict[int, Curve] = {
        seed: rows.curves.get(seed, []) if row.succeeded else [] for seed, row in rows.seeds.items() if row is not None
    }
    limit = max((curve[-1][place] for curve in curves.values() if curve), default=None)
    if limit is None:
        return {}
    found = {}
    for share, loss in targets.items():
        hits = {seed: first_at_or_below(curve, loss) for seed, curve in curves.items()}
        values = {seed: None if hit is None else float(hit[place == _SECONDS]) for seed, hit in hits.items()}
        found[share] = Reached(_median(values), values, limit)
    return found


def _median(values: Mapping[int, float | None]) -> float | None:
    """The median, where a seed that never reached the target is later than all others; None if the median is too."""
    middle = median(math.inf if value is None else value for value in values.values())
    return middle if math.isfinite(middle) else None
