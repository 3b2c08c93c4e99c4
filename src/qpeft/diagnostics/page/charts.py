"""Which charts a finding has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from qpeft.compare.report import canvas, numbers
from qpeft.compare.report.charts import Chart, control_differences
from qpeft.compare.report.labels import apart
from qpeft.diagnostics.effective_rank import EffectiveRank
from qpeft.diagnostics.expressibility import Expressibility
from qpeft.diagnostics.finding import Finding, Measurement
from qpeft.diagnostics.gradient_variance import GradientVariance
from qpeft.diagnostics.movement import STILL, AngleMovement
from qpeft.diagnostics.porter_thomas import PorterThomas
from qpeft.diagnostics.questions import BARE
from qpeft.diagnostics.retraining import CircuitMatters

_HEIGHT = 230
_BINS = 24
_NARROWEST = 1.5  # of an axis of log2: a flat line must look flat
_FEW = 1e-4  # no density below it is drawn


def charts_of(finding: Finding) -> list[Chart]:
    """In the order of the figures."""
    made = _CHARTS.get(finding.key)
    return [] if made is None or not finding.figures else made(finding.figures)


def _laws(figures: Mapping[str, Any]) -> list[Chart]:
    return [_law(name, figure) for name, figure in figures.items()]


def _law(where: str, figure: PorterThomas) -> Chart:
    """The histogram of D p with the law's density, on a logarithmic scale that shows the tail."""
    name, bins = f"law-{where.replace(' ', '-')}", figure.histogram
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart)
        left, width = bins.edges[:-1], bins.edges[1] - bins.edges[0]
        plot.bar(left, bins.density, width=0.86 * width, align="edge", color=canvas.QUANTUM, alpha=0.55, lw=0)
        middles = [edge + width / 2 for edge in left]
        plot.plot(middles, bins.expected_density, color=canvas.INK, lw=1.4)
        _logarithmic(plot)
        lowest = 0.5 / (figure.n_states * figure.n_outcomes * width)  # half of one probability in a bin
        highest = max(*bins.density, *bins.expected_density)
        plot.set_ylim(max(_FEW, lowest), 2 * highest)
        plot.set_xlim(0, bins.edges[-1])
        plot.text(0.97, 0.95, "line: random real states", transform=plot.transAxes, ha="right", va="top",
                  color=canvas.MUTED, size=canvas.FONT - 1)  # fmt: skip
        canvas.titles(chart, plot, "D p, probability times outcomes", f"Density of D p, {where}")
        document = canvas.to_svg(chart)
    beyond = f"; {bins.beyond:.2%} of the probabilities lie beyond the chart" if bins.beyond else ""
    states = f"{figure.n_states:,} circuits" if figure.n_states > 1 else "one circuit"
    caption = f"{figure.n_outcomes:,} probabilities of {states}{beyond}."
    return Chart(name, f"Histogram of D p, {where}, with the density of random real states", document, caption)


def _logarithmic(plot) -> None:
    """The y axis, with numbers a reader reads."""
    plot.set_yscale("log")
    plot.minorticks_off()
    plot.yaxis.set_major_formatter(lambda value, _: numbers.rate(value))


def _gradients(figures: Mapping[str, Any]) -> list[Chart]:
    read = [figure for name, figure in figures.items() if name != BARE]
    return [
        _variance("gradients-read", read, "2^N p", "What QPA reads."),
        _variance("gradients-bare", [figures[BARE]], "p", "A probability as it is, without the factor 2^N."),
    ]


def _variance(name: str, figures: Sequence[GradientVariance], what: str, caption: str) -> Chart:
    """log2 of the variance over qubits: dots with their errors, a line for each depth, named at its end."""
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart, left=36, right=74)
        ends = [_depth(plot, figure, alpha) for figure, alpha in zip(figures, _shades(len(figures)), strict=True)]
        widths = figures[0].n_qubits
        plot.set_xticks(list(widths))
        plot.set_xlim(widths[0] - 0.3, widths[-1] + 0.3)
        low, high = plot.get_ylim()
        room = max(0.0, _NARROWEST - (high - low)) / 2
        plot.set_ylim(low - room, high + room)
        plot.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\u2212"))
        _name_ends(plot, [(label, canvas.QUANTUM, end) for end, label in ends])
        canvas.titles(chart, plot, "Qubits", f"log2 of the variance of the gradient of {what}")
        document = canvas.to_svg(chart)
    said = f"{caption} Beside each depth L the slope of its line per qubit; bars are standard errors."
    return Chart(name, f"Variance of the gradient of {what} against the number of qubits", document, said)


def _depth(plot, figure: GradientVariance, alpha: float) -> tuple[float, str]:
    """Draws one depth; where its line ends, and what it is called there."""
    variances, errors, slope = figure.variances[0], figure.errors[0], figure.slopes[0]
    logs = [math.log2(value) if value > 0 else math.nan for value in variances]
    spread = [e / value / math.log(2) if value > 0 else 0.0 for e, value in zip(errors, variances, strict=True)]
    look = {"color": canvas.QUANTUM, "alpha": alpha}
    plot.errorbar(figure.n_qubits, logs, yerr=spread, fmt="o", ms=4, elinewidth=1, mew=0, **look)
    label = f"L={figure.n_layers[0]}"
    if slope is None:
        return logs[-1], label
    line = [fmean(logs) + slope * (n - fmean(figure.n_qubits)) for n in figure.n_qubits]
    plot.plot(figure.n_qubits, line, lw=1.4, **look)
    return line[-1], f"{label}: {slope:+.2f}".replace("-", "\u2212")


def _shades(n: int) -> list[float]:
    """Deeper circuits stronger."""
    return [1.0 - 0.28 * (n - 1 - index) for index in range(n)]


def _fidelities(figures: Mapping[str, Any]) -> list[Chart]:
    """The shares of fidelities in bins that random states fill equally."""
    figure: Expressibility = figures["expressibility"]
    name = "fidelities"
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart)
        at = [(index + 0.5) / figure.n_bins for index in range(figure.n_bins)]
        relative = [figure.n_bins * share for share in figure.shares]
        plot.bar(at, relative, width=0.86 / figure.n_bins, color=canvas.QUANTUM, alpha=0.55, lw=0)
        plot.axhline(1, color=canvas.INK, lw=1.4)
        plot.set_xlim(0, 1)
        plot.set_ylim(0, 1.15 * max(2.0, *relative))
        canvas.titles(chart, plot, "Fidelity, as its rank among random states", "Pairs of states, random states = 1")
        document = canvas.to_svg(chart)
    caption = f"{figure.n_pairs:,} pairs at random angles; random real states fill every bin equally."
    return [Chart(name, "Fidelities of pairs of states, beside random states", document, caption)]


def _movement(figures: Mapping[str, Any]) -> list[Chart]:
    figure: AngleMovement = figures["angles"]
    if not figure.maximum:
        return []
    name = "movement"
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart)
        plot.hist(figure.values, bins=_BINS, range=(0, figure.maximum), color=canvas.QUANTUM, alpha=0.55, rwidth=0.86)
        plot.axvline(figure.mean, color=canvas.INK, lw=1.4)
        plot.annotate("mean", (figure.mean, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                      textcoords="offset points", va="top", size=canvas.FONT - 1)  # fmt: skip
        if figure.maximum > STILL:
            plot.axvspan(0, STILL, color=canvas.FAINT, lw=0, zorder=0.5)
        plot.set_xlim(0, figure.maximum)
        plot.locator_params(axis="y", integer=True, nbins=5)
        canvas.titles(chart, plot, "Movement of an angle (rad)", "Angles")
        document = canvas.to_svg(chart)
    caption = f"{figure.n_angles:,} angles; those within {STILL:g} rad of their start count as still."
    return [Chart(name, "How far each angle moved from its start", document, caption)]


def _ranks(figures: Mapping[str, Any]) -> list[Chart]:
    found = []
    for what, figure in figures.items():
        if figure.used:
            found.append(_spectrum(what, figure))
            if len(figure.matrices) > 1:
                found.append(_by_matrix(what, figure))
    return found


def _spectrum(what: str, figure: EffectiveRank) -> Chart:
    """Singular values, the largest 1: a faint line a matrix, the mean strong."""
    name = f"spectrum-{what}"
    relative = [[s / matrix.singular_values[0] for s in matrix.singular_values] for matrix in figure.used]
    longest = max(map(len, relative))
    means = [fmean(line[index] for line in relative if index < len(line)) for index in range(longest)]
    dots = "o" if longest <= 32 else ""
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart)
        for line in relative if len(relative) > 1 else ():
            plot.plot(range(1, len(line) + 1), line, color=canvas.QUANTUM, alpha=0.16, lw=1)
        plot.plot(range(1, longest + 1), means, color=canvas.QUANTUM, marker=dots, ms=4, mew=0)
        is_steep = min(means) < 1e-2
        if is_steep:
            _logarithmic(plot)
            plot.set_ylim(max(1e-8, 0.5 * min(value for value in means if value > 0)), 1.6)
        else:
            plot.set_ylim(0, 1.05)
        plot.locator_params(axis="x", integer=True, nbins=8)
        canvas.titles(chart, plot, "Singular value, by size", "Relative to the largest")
        document = canvas.to_svg(chart)
    n = len(figure.used)
    caption = f"{_WHAT[what]}: " + ("one matrix." if n == 1 else f"{n:,} matrices and, strong, their mean.")
    return Chart(name, f"Singular values of {_WHAT[what].lower()}", document, caption)


def _by_matrix(what: str, figure: EffectiveRank) -> Chart:
    """The entropy rank of each matrix in the model's order, and its stable rank."""
    name = f"by-matrix-{what}"
    places = range(1, len(figure.matrices) + 1)
    kinds = (("entropy", canvas.QUANTUM, "o"), ("stable", canvas.CLASSICAL, "s"))
    top = max(matrix.possible for matrix in figure.matrices)
    with canvas.style(name):
        chart = canvas.figure(_HEIGHT)
        plot = canvas.axes(chart, right=66)
        plot.axhline(top, color=canvas.INK, lw=1)
        labels = [("possible", canvas.INK, float(top))]
        for kind, colour, shape in kinds:
            values = [getattr(matrix, f"{kind}_rank") for matrix in figure.matrices]
            plot.plot(places, values, shape, ms=4, mew=0, color=colour)
            labels.append((kind, colour, fmean(values)))
        plot.set_ylim(0, 1.08 * top)
        plot.locator_params(axis="x", integer=True, nbins=8)
        _name_ends(plot, labels)
        canvas.titles(chart, plot, "Matrix, in the model's order", "Rank")
        document = canvas.to_svg(chart)
    return Chart(name, "Entropy and stable rank of each matrix", document, "Each adapted matrix by itself.")


def _name_ends(plot, labels: Sequence[tuple[str, str, float]]) -> None:
    """Names with their colours right of the chart at the given heights, none over another."""
    frame = plot.get_window_extent()
    pixels = [float(plot.transData.transform((0, height))[1]) for _, _, height in labels]
    heights = apart(pixels, canvas.FONT + 1, float(frame.y0), float(frame.y1) + canvas.FONT)
    for (label, colour, _), height in zip(labels, heights, strict=True):
        plot.text(float(frame.x1) + 4, height, label, transform=None, va="center_baseline", color=colour,
                  size=canvas.FONT - 1)  # fmt: skip


def _trainings(figures: Mapping[str, Any]) -> list[Chart]:
    trainings: CircuitMatters = figures["trainings"]
    return control_differences(trainings.summary)


_WHAT = {"chunks": "Chunks", "change": "What training changed in the chunks", "updates": "Updates of the weights"}
_CHARTS: dict[str, Callable[[Mapping[str, Measurement]], list[Chart]]] = {
    "random": _laws,
    "gradients": _gradients,
    "expressive": _fidelities,
    "moved": _movement,
    "rank": _ranks,
    "matters": _trainings,
}
