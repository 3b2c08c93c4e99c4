"""Speed of convergence: the evaluation at which a target loss is first reached.

Three validation losses are targets: the reference's mean at its end; the base's minus 50 % and minus 90 % of what full
fine-tuning gained. Nothing is interpolated between evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping

from qpeft import methods
from qpeft.compare.analysis.statistics import describe
from qpeft.compare.analysis.types import Reached
from qpeft.compare.measurements.convergence import first_at_or_below
from qpeft.compare.resolved import ResolvedStudy
from qpeft.compare.rows import Curve
from qpeft.methods import Trains

REFERENCE, HALF, NINETY = "reference", "half_of_full", "ninety_of_full"


def target_losses(study: ResolvedStudy, curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, float | None]:
    """The three target losses; None where the study has no such method, or full fine-tuning gained nothing.

    `curves`: by method, those of the seeds that succeeded.
    """
    full = next((m.key for m in study.methods if _trains_model(m.method)), "")
    start, end = _mean_loss(curves.get(full, {}), 0), _mean_loss(curves.get(full, {}), -1)
    found = {REFERENCE: _mean_loss(curves.get(study.reference, {}), -1), HALF: None, NINETY: None}
    if start is not None and end is not None and start > end:
        found |= {HALF: start - 0.5 * (start - end), NINETY: start - 0.9 * (start - end)}
    return found


def steps_and_seconds(
    curves: Mapping[int, Curve], targets: Mapping[str, float | None]
) -> tuple[dict[str, Reached], dict[str, Reached]]:
    """By target: when the seeds first evaluated at or below it."""
    known = {name: loss for name, loss in targets.items() if loss is not None and curves}
    hits = {
        name: {seed: first_at_or_below(curve, loss) for seed, curve in curves.items()} for name, loss in known.items()
    }
    ends = [curve[-1] for curve in curves.values()]
    steps = {name: _reached(found, 0, max(end[0] for end in ends)) for name, found in hits.items()}
    return steps, {name: _reached(found, 1, max(end[3] for end in ends)) for name, found in hits.items()}


def _trains_model(method: str) -> bool:
    found = methods.find(method)
    return found is not None and found.trains is Trains.MODEL


def _reached(hits: Mapping[int, tuple[int, float] | None], place: int, limit: float) -> Reached:
    values = {seed: None if hit is None else float(hit[place]) for seed, hit in hits.items()}
    reached = {seed: value for seed, value in values.items() if value is not None}
    stats = describe(reached) if len(reached) == len(values) else None
    return Reached(None if stats is None else stats.mean, values, limit)


def _mean_loss(curves: Mapping[int, Curve], place: int) -> float | None:
    """The mean over seeds of the first (0) or last (-1) validation loss."""
    losses = {seed: [entry[2] for entry in curve if entry[2] is not None] for seed, curve in curves.items()}
    stats = describe({seed: found[place] for seed, found in losses.items() if found})
    return None if stats is None else stats.mean
