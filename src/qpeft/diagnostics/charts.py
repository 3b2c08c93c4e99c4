"""The charts of a finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qpeft.compare.report.charts import control_differences
from qpeft.compare.report.plotting import (
    FAINT,
    INK,
    QUANTUM,
    Chart,
    drawing,
    label_axes,
    legend_below,
    save,
    use_log_scale,
)
from qpeft.diagnostics.diagnosis import BARE
from qpeft.diagnostics.effective_rank import EffectiveRank
from qpeft.diagnostics.expressibility import Expressibility
from qpeft.diagnostics.finding import Finding
from qpeft.diagnostics.gradient_variance import GradientVariance
from qpeft.diagnostics.movement import STILL, AngleMovement
from qpeft.diagnostics.porter_thomas import PorterThomas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 250
_BINS = 24
_NARROWEST = 1.5  # of an axis of log2: a flat line must look flat
_FEW = 1e-4  # no density below it is drawn
_BARS = {"color": QUANTUM, "alpha": 0.55}


def charts_of(finding: Finding) -> list[Chart]:
    """In the order of the measurements."""
    make = _CHARTS.get(finding.key)
    return [] if make is None or not finding.measurements else make(finding.measurements)


def _porter_thomas(found: Mapping[str, Any]) -> list[Chart]:
    return [_histogram(name, measured) for name, measured in found.items()]


def _histogram(where: str, measured: PorterThomas) -> Chart:
    """The histogram of D p with the density of the law, on a logarithmic scale that shows the tail."""
    bins = measured.histogram
    left, width = bins.edges[:-1], bins.edges[1] - bins.edges[0]
    lowest = 0.5 / (measured.n_states * measured.n_outcomes * width)  # half of one probability in a bin
    beyond = f"; {bins.beyond:.2%} of the probabilities are outside the chart" if bins.beyond else ""
    states = f"{measured.n_states:,} circuits" if measured.n_states > 1 else "one circuit"
    with drawing(_HEIGHT) as (chart, axes):
        axes.bar(left, bins.density, width=0.86 * width, align="edge", label="circuit", **_BARS)
        axes.plot(
            [x + width / 2 for x in left], bins.expected_density, color=INK, label=f"random {measured.field} states"
        )
        use_log_scale(axes)
        axes.set_ylim(max(_FEW, lowest), 2 * max(*bins.density, *bins.expected_density))
        axes.set_xlim(0, bins.edges[-1])
        label_axes(axes, "D p, probability times number of outcomes", f"Density of D p, {where}")
        axes.legend()
        title = f"Histogram of D p, {where}, with the density of random {measured.field} states"
        caption = f"{measured.n_outcomes:,} probabilities of {states}{beyond}."
        return save(chart, f"law-{where.replace(' ', '-')}", title, caption)


def _gradients(found: Mapping[str, Any]) -> list[Chart]:
    read = [measured for name, measured in found.items() if name != BARE]
    return [
        _variance("gradients-read", read, "2^N p", "What QPA reads."),
        _variance("gradients-bare", [found[BARE]], "p", "A probability without the factor 2^N."),
    ]


def _variance(name: str, found: Sequence[GradientVariance], what: str, caption: str) -> Chart:
    """log2 of the variance over qubits: dots with standard errors, and a fitted line for each depth."""
    widths = found[0].n_qubits
    with drawing(_HEIGHT, legend=len(found)) as (chart, axes):
        for index, measured in enumerate(found):
            _depth(axes, measured, alpha=1.0 - 0.28 * (len(found) - 1 - index))  # deeper circuits stronger
        axes.set_xticks(list(widths))
        low, high = axes.get_ylim()
        room = max(0.0, _NARROWEST - (high - low)) / 2
        axes.set_ylim(low - room, high + room)
        label_axes(axes, "Qubits", f"log2 of the variance of the gradient of {what}")
        legend_below(chart, axes)
        title = f"Variance of the gradient of {what} against the number of qubits"
        return save(chart, name, title, f"{caption} In the legend, the slope per qubit. Bars are standard errors.")


def _depth(axes: Axes, measured: GradientVariance, alpha: float) -> None:
    variances, errors, slope = measured.variances[0], measured.errors[0], measured.slopes[0]
    logs = [math.log2(value) if value > 0 else math.nan for value in variances]
    spread = [e / value / math.log(2) if value > 0 else 0.0 for e, value in zip(errors, variances, strict=True)]
    label = f"{measured.n_layers[0]} layers" + ("" if slope is None else f": {slope:+.2f}")
    axes.errorbar(measured.n_qubits, logs, yerr=spread, fmt="o", ms=4, color=QUANTUM, alpha=alpha, label=label)
    if slope is not None:
        line = [fmean(logs) + slope * (n - fmean(measured.n_qubits)) for n in measured.n_qubits]
        axes.plot(measured.n_qubits, line, color=QUANTUM, alpha=alpha)


def _fidelities(found: Mapping[str, Any]) -> list[Chart]:
    """The shares of fidelities in bins that random states fill equally."""
    measured: Expressibility = found["expressibility"]
    at = [(index + 0.5) / measured.n_bins for index in range(measured.n_bins)]
    relative = [measured.n_bins * share for share in measured.shares]
    with drawing(_HEIGHT) as (chart, axes):
        axes.bar(at, relative, width=0.86 / measured.n_bins, label="circuit", **_BARS)
        axes.axhline(1, color=INK, label=f"random {measured.field} states")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.15 * max(2.0, *relative))
        label_axes(axes, "Fidelity, as its rank among random states", "Pairs of states, random states = 1")
        axes.legend()
        caption = f"{measured.n_pairs:,} pairs at random angles; random {measured.field} states fill every bin equally."
        return [save(chart, "fidelities", "Fidelities of pairs of states, compared with random states", caption)]


def _movement(found: Mapping[str, Any]) -> list[Chart]:
    measured: AngleMovement = found["angles"]
    if not measured.maximum:
        return []
    with drawing(_HEIGHT) as (chart, axes):
        axes.hist(measured.values, bins=_BINS, range=(0, measured.maximum), rwidth=0.86, **_BARS)
        axes.axvline(measured.mean, color=INK, label="mean")
        if measured.maximum > STILL:
            axes.axvspan(0, STILL, color=FAINT, zorder=0.5)
        axes.set_xlim(0, measured.maximum)
        axes.locator_params(axis="y", integer=True, nbins=5)
        label_axes(axes, "Movement of an angle (rad)", "Angles")
        axes.legend()
        caption = f"{measured.n_angles:,} angles; those within {STILL:g} rad of their initial value count as still."
        return [save(chart, "movement", "How far each angle moved from its initial value", caption)]


def _ranks(found: Mapping[str, Any]) -> list[Chart]:
    return [_spectrum(what, measured) for what, measured in found.items() if measured.used]


def _spectrum(what: str, measured: EffectiveRank) -> Chart:
    """Singular values relative to the largest: a faint line for each matrix, and their mean."""
    relative = [[s / matrix.singular_values[0] for s in matrix.singular_values] for matrix in measured.used]
    longest = max(map(len, relative))
    means = [fmean(line[index] for line in relative if index < len(line)) for index in range(longest)]
    with drawing(_HEIGHT) as (chart, axes):
        for line in relative if len(relative) > 1 else ():
            axes.plot(range(1, len(line) + 1), line, color=QUANTUM, alpha=0.16, lw=1)
        axes.plot(range(1, longest + 1), means, color=QUANTUM, marker="o" if longest <= 32 else "", ms=4)
        if min(means) < 1e-2:
            use_log_scale(axes)
            axes.set_ylim(max(1e-8, 0.5 * min(value for value in means if value > 0)), 1.6)
        else:
            axes.set_ylim(0, 1.05)
        axes.locator_params(axis="x", integer=True, nbins=8)
        label_axes(axes, "Index of the singular value, largest first", "Relative to the largest")
        n, of = len(measured.used), _WHAT[what]
        caption = f"{of}: one matrix." if n == 1 else f"{of}: {n:,} matrices (faint lines) and their mean."
        return save(chart, f"spectrum-{what}", f"Singular values of {of.lower()}", caption)


_WHAT = {"chunks": "Chunks", "change": "The change of the chunks by training", "updates": "Updates of the weights"}
_CHARTS: dict[str, Callable[[Mapping[str, Any]], list[Chart]]] = {
    "random": _porter_thomas,
    "gradients": _gradients,
    "expressive": _fidelities,
    "moved": _movement,
    "rank": _ranks,
    "matters": lambda found: control_differences(found["trainings"].summary),
}
