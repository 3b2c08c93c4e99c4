"""The Pareto front of a study: the best method of at most each size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qpeft.compare.analysis.statistics import NO_DIFFERENCE, paired_difference
from qpeft.compare.analysis.types import MethodSummary, Summary


@dataclass(frozen=True)
class OnFront:
    """A method that no other one of at most its size equals.

    `rivals` are the methods of at most this size from which no difference is shown: the 95 % interval of the
    difference, paired by seed and not corrected for several comparisons, includes 0.
    """

    method: MethodSummary
    size: float
    rivals: list[MethodSummary]


def front_of(summary: Summary, size: Callable[[MethodSummary], float | None]) -> list[OnFront]:
    """The front in `size`, by rising size; without methods of which a seed failed."""
    sizes = {m.key: x for m in summary.methods if m.metric and not m.has_failures and (x := size(m)) is not None}
    means = {key: stats.mean for key in sizes if (stats := summary[key].metric)}
    keys = pareto_front({key: (sizes[key], means[key]) for key in sizes}, summary.lower_is_better)
    return [OnFront(summary[key], sizes[key], _rivals(summary, key, sizes)) for key in keys]


def pareto_front(points: Mapping[str, tuple[float, float]], lower_is_better: bool) -> list[str]:
    """Of points (size, quality) by key those that no other equals at a lower or equal size, by rising size."""
    sign = 1 if lower_is_better else -1
    kept: list[str] = []
    for key in sorted(points, key=lambda key: (points[key][0], sign * points[key][1])):
        if not kept or sign * points[key][1] < sign * points[kept[-1]][1]:
            kept.append(key)
    return kept


def _rivals(summary: Summary, key: str, sizes: Mapping[str, float]) -> list[MethodSummary]:
    best = summary[key]
    found = []
    for other in (summary[name] for name in sizes if name != key and sizes[name] <= sizes[key]):
        assert other.metric is not None
        assert best.metric is not None
        difference = paired_difference(other.metric.values, best.metric.values, key, summary.lower_is_better)
        if difference is not None and difference.verdict_alone == NO_DIFFERENCE:
            found.append(other)
    return found
