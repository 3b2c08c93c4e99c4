"""The picture of docs/results/budgets.md: all adapters of the study `budgets`, and the best within each size.

A mark is a mean test loss over five seeds, with its 95 % interval. The dashed line is the Pareto front: no adapter of
at most this size has a lower loss. Adapters that are worse than the untrained base are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.ticker import EngFormatter

from qpeft.compare.analysis.front import front_of
from qpeft.compare.analysis.types import MethodSummary, Summary
from qpeft.compare.report.plotting import CLASSICAL, CONTROL, MUTED, QUANTUM, WIDTH, drawing, save

SIZES: dict[str, Callable[[MethodSummary], float | None]] = {
    "trainable parameters": lambda method: method.trainable or None,
    "bytes of the weights file": lambda method: method.bytes_stored or None,
}
ONE_QUBIT = ("type_R2",)  # its circuits are rotations of a plane
KINDS = {
    "circuit": {"color": QUANTUM, "marker": "o"},
    "control of a circuit: signs, core, Lie, one qubit": {"color": CONTROL, "marker": "D"},
    "classical": {"color": CLASSICAL, "marker": "s"},
}


def draw(summaries: Mapping[str, Summary]) -> str:
    """SVG: a row for each setup, which is named by the keys of `summaries`, and a column for each of `SIZES`."""
    with drawing(200 * len(summaries) + 60, width=2 * WIDTH) as (figure, first):
        first.remove()
        grid = figure.subplots(len(summaries), len(SIZES), squeeze=False, sharex="col", sharey="row")
        for row, (setup, summary) in zip(grid, summaries.items(), strict=True):
            for axes, (name, size) in zip(row, SIZES.items(), strict=True):
                _panel(axes, summary, size)
                axes.set_title(setup if axes is row[0] else "", fontsize="medium")
                axes.set_xlabel(name if axes in grid[-1] else "")
            row[0].set_ylabel("test loss (nats per token)")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return save(figure, "fronts", "Test loss against size").svg


def _panel(axes: Any, summary: Summary, size: Callable[[MethodSummary], float | None]) -> None:
    untrained = summary["none"].metric
    assert untrained is not None
    front = front_of(summary, size)
    losses = [one.method.metric.mean for one in front if one.method.metric]
    axes.step([one.size for one in front], losses, where="post", color=MUTED, lw=1, ls="--", label="best within a size")
    for kind, look in KINDS.items():
        points = [
            (x, method.metric.mean, method.metric.half_width or 0.0)
            for method in summary.methods
            if _kind(method) == kind and method.metric and method.metric.mean < untrained.mean and (x := size(method))
        ]
        if points:
            x, mean, reach = zip(*points, strict=True)
            axes.errorbar(x, mean, reach, label=kind, linestyle="", markersize=3.5, elinewidth=1, **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def has_circuit(method: MethodSummary) -> bool:
    """Whether it is a design with gates between qubits."""
    return method.kind == "quantum" and method.role == "main" and method.key not in ONE_QUBIT


def _kind(method: MethodSummary) -> str:
    if has_circuit(method):
        return "circuit"
    is_control = method.role == "control" or method.key in ONE_QUBIT
    return next(kind for kind in KINDS if kind.startswith("control" if is_control else "classical"))
