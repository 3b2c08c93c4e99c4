"""From runs to lines of a table: accuracy over the seeds, and the difference to the head alone."""

from __future__ import annotations

from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

from rich.table import Table
from scipy.stats import t

from classification_parts import Part
from classification_rows import BASELINE, ROWS
from qpeft.training import TrainResult


class Line(NamedTuple):
    """One row over its seeds; accuracies are shares of the test examples."""

    row: str
    lr: float
    at_edge: bool  # the best rate was the lowest or the highest of at least three
    trained_adapter: int
    trained_head: int
    n_examples: int
    accuracies: list[float]
    difference: float  # to the head alone, mean over the seeds
    reach: float  # half of the 95 % interval of that mean, by Student's t over the paired seeds


def lines(runs: dict[str, list[TrainResult]], rates: dict[str, float]) -> list[Line]:
    """A line for each row."""
    baseline = [result.after.accuracy for result in runs[BASELINE]]
    return [_line(name, rates[ROWS[name].like or name], results, baseline) for name, results in runs.items()]


def table(name: str, part: Part, found: list[Line]) -> Table:
    """Accuracies in percent, differences in points."""
    told = ", ".join(f"{key} {value}" for key, value in part.options.items())
    sizes = f"{found[0].n_examples} test examples, head of {found[0].trained_head} numbers"
    shown = Table(title=f"{name}: {part.steps} steps, {told}; {sizes}")
    for heading in ("method", "adapter's parameters", "rate", "accuracy, %", "to the head alone, points"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for line in found:
        accuracy = f"{100 * mean(line.accuracies):.1f} ± {100 * stdev(line.accuracies):.1f}"
        difference = f"{100 * line.difference:+.1f} ± {100 * line.reach:.1f}" if line.row != BASELINE else ""
        shown.add_row(line.row, f"{line.trained_adapter:,}", f"{line.lr:g}", accuracy, difference)
    return shown


def _line(name: str, lr: float, results: list[TrainResult], baseline: list[float]) -> Line:
    first = results[0]
    accuracies = [result.after.accuracy for result in results]
    differences = [ours - theirs for ours, theirs in zip(accuracies, baseline, strict=True)]
    return Line(
        row=name,
        lr=lr,
        at_edge=lr in _edges(ROWS[ROWS[name].like or name].rates),
        trained_adapter=first.trainable - first.trainable_head,
        trained_head=first.trainable_head,
        n_examples=first.after.n_examples,
        accuracies=accuracies,
        difference=mean(differences),
        reach=float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / sqrt(len(differences)),
    )


def _edges(rates: tuple[float, ...]) -> tuple[float, ...]:
    return (min(rates), max(rates)) if len(rates) > 2 else ()
