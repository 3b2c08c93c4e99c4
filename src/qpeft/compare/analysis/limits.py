"""What a study does not show: fixed sentences, and those that depend on its rows."""

from __future__ import annotations

from collections.abc import Iterable

from qpeft.compare.analysis.sentences import capital
from qpeft.compare.analysis.statistics import MIN_SEEDS
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.study import is_ranked

SIMULATED = "All quantum circuits are simulated on classical hardware; no quantum speed-up is shown or implied."
QAA_DEFAULTS = "The defaults of QAA are our own choice: the original paper's settings were not available."


def limits_of(summary: Summary) -> list[str]:
    """Every sentence, the most important first."""
    found = [SIMULATED, QAA_DEFAULTS, *_controls(summary), _scope(summary), *_statistics(summary)]
    found += [*_edges(summary), *_preliminary(summary), *_failures(summary), *_missing(summary)]
    return [*found, *_unranked(summary), *_machines(summary)]


def as_good_as_target(control: MethodSummary, lower_is_better: bool) -> bool:
    """True if the interval of control minus method is not entirely on the worse side, and no seed failed."""
    found = control.difference_to_target
    if found is None or found.n < MIN_SEEDS or found.low is None or found.high is None or control.has_failures:
        return False
    return found.low <= 0 if lower_is_better else found.high >= 0


def _controls(summary: Summary) -> list[str]:
    controls = [m for m in summary.methods if as_good_as_target(m, summary.lower_is_better) and m.against is not None]
    return [f"{_performs(m, summary)}." for m in controls]


def _performs(control: MethodSummary, summary: Summary) -> str:
    """The sentence about a control, with its interval: an interval around 0 does not prove equality."""
    found = control.difference_to_target
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    to = summary[str(control.against)].label
    interval = f"difference {found.mean:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}"
    is_better = found.high < 0 if summary.lower_is_better else found.low > 0
    word = "better than" if is_better else "as well as"
    return f"{capital(control.label)} performs {word} {to} here ({interval})"


def _scope(summary: Summary) -> str:
    study = summary.study
    where = f"One base ({study.base.id}), one data set ({study.data.id}), {study.training.steps:,} steps"
    return f"{where}: others may rank the methods differently."


def _statistics(summary: Summary) -> list[str]:
    if summary.n_comparisons == 0:
        return []
    rule = '"Better" and "worse" require that the 95 % t interval of the difference, paired by seed, excludes 0'
    how = f"with at least {MIN_SEEDS} seeds, after Holm's correction over {summary.n_comparisons} comparisons"
    return [f"{rule}, {how}.", "Intervals cover the variation over seeds only, not over the choice of test data."]


def _edges(summary: Summary) -> list[str]:
    names = [m.label for m in summary.methods if m.lr_at_edge is not None]
    if not names:
        return []
    return [f"The best learning rate is at an edge of the grid for {_list(names)}: a wider grid may do better."]


def _preliminary(summary: Summary) -> list[str]:
    names = [m.label for m in summary.methods if m.metric is not None and m.metric.n < MIN_SEEDS]
    return [f"Preliminary, with fewer than {MIN_SEEDS} seeds, and not ranked: {_list(names)}."] if names else []


def _failures(summary: Summary) -> list[str]:
    found = [m for m in summary.methods if m.has_failures]
    if not found:
        return []
    lost = [f"{m.label} ({sum(s not in ('success', 'missing') for s in m.statuses.values())})" for m in found]
    return [f"Seeds failed or diverged: {_list(lost)}. Such a method is not ranked, and no verdict favors it."]


def _missing(summary: Summary) -> list[str]:
    n = sum(status == "missing" for m in summary.methods for status in m.statuses.values())
    planned = sum(len(m.statuses) for m in summary.methods)
    return [f"{n} of {planned} runs are missing: the study is not finished."] if n else []


def _unranked(summary: Summary) -> list[str]:
    found = []
    for block in summary.blocks:
        outside = [m for m in block.members if not is_ranked(m.ratio)]
        if outside:
            names = _list(f"{summary[m.key].label} ({100 * m.ratio:.3g} %)" for m in outside)
            start = f"At the {block.budget:,} trainable parameters of {summary[block.of].label}"
            found.append(f"{start} these methods are outside 80 to 100 % of the budget and not ranked: {names}.")
    return found


def _machines(summary: Summary) -> list[str]:
    names = sorted({m.hardware for m in summary.methods if m.hardware is not None})
    if len(names) < 2:
        return []
    return [f"Costs were measured on different hardware ({'; '.join(names)}), so times are not comparable."]


def _list(names: Iterable[str]) -> str:
    return "; ".join(names)
