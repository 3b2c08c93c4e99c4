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
    full = next((m.key for m in study.methods if _trains_model(m.method)), None)
    start, end = _mean_loss(curves.get(full or "", {}), 0), _mean_loss(curves.get(full or "", {}), -1)
    gain = start - end if start is not None and end is not None else 0.0
    return {
        REFERENCE: _mean_loss(curves.get(study.reference, {}), -1),
        HALF: start - 0.5 * gain if start is not None and gain > 0 else None,
        NINETY: start - 0.9 * gain if start is not None and gain > 0 else None,
    }


def _trains_model(method: str) -> bool:
    found = methods.find(method)
    return found is not None and found.trains is Trains.MODEL


def steps_and_seconds(curves: Mapping[int, Curve], loss: float) -> tuple[Reached, Reached] | None:
    """When the seeds first evaluated at or below `loss`; None without curves."""
    if not curves:
        return None
    found = {seed: first_at_or_below(curve, loss) for seed, curve in curves.items()}
    steps = {seed: None if hit is None else float(hit[0]) for seed, hit in found.items()}
    seconds = {seed: None if hit is None else float(hit[1]) for seed, hit in found.items()}
    ends = [curve[-1] for curve in curves.values()]
    return _reached(steps, max(end[0] for end in ends)), _reached(seconds, max(end[3] for end in ends))


def _reached(values: dict[int, float | None], limit: float) -> Reached:
    hits = {seed: value for seed, value in values.items() if value is not None}
    stats = describe(hits) if len(hits) == len(values) else None
    return Reached(None if stats is None else stats.mean, values, limit)


def _mean_loss(curves: Mapping[int, Curve], place: int) -> float | None:
    """The mean over seeds of the first (0) or last (-1) validation loss."""
    losses = {seed: [entry[2] for entry in curve if entry[2] is not None] for seed, curve in curves.items()}
    stats = describe({seed: found[place] for seed, found in losses.items() if found})
    return None if stats is None else stats.mean
