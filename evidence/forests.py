"""Forests: every difference of a table with its interval, the margin as a band, and the decision in
words.

A forest is drawn from the comparisons of the table that has its name, so both show the same values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import page_tables
from comparison_tables import Grid
from qpeft_lab.compare.charts import draw_interval

WIDTH = 660  # points, as all lengths here
LABELS = 232  # left of the intervals
DECISIONS = 140  # to the right of them
PITCH = 15  # of the lines
GAP = 9  # between groups
AXIS = 42  # below the intervals
COLORS = {"better": "#1559b7", "worse": "#a34a00", "equivalent": "#1c1d20", "undecided": "#5d6067"}
BAND = "#e9e7df"


class Forest(NamedTuple):
    """A picture of a table: who is better below 0, and how a line and a column of it are called."""

    table: str
    better: str
    row: str = "{}"
    column: str = "{}"
    with_words: bool = True  # those in front of a value; without, if they are long

    def measured(self) -> dict[str, Any]:
        """The margin, and a line for each comparison, as the table shows it."""
        grid = page_tables.TABLES[self.table].make()
        assert isinstance(grid, Grid)
        _, *columns = grid.header
        lines = []
        for row, decisions in zip(grid.rows, grid.verdicts(), strict=True):
            for column, cell, decision in zip(columns, row.cells, decisions, strict=True):
                if cell is None:
                    continue
                low, high = cell.difference.interval()
                line = {
                    "group": self.row.format(row.label),
                    "label": self.column.format(column),
                    "words": cell.words.rstrip(":; ") if self.with_words else "",
                    "mean": round(cell.difference.mean, 1),
                    "low": round(low, 1),
                    "high": round(high, 1),
                    "decision": decision,
                }
                lines.append(line)
        return {"margin": grid.margin, "lines": lines}

    def draw(self, values: dict[str, Any]) -> Figure:
        """Groups from top to bottom; a table of one column has a line for each group."""
        lines = values["lines"]
        groups: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            groups.setdefault(line["group"], []).append(line)
        has_headings = len(groups) < len(lines)
        height = len(lines) * PITCH + 2 * GAP
        if has_headings:
            height += len(groups) * (PITCH + GAP)
        chart = Figure(figsize=(WIDTH / 72, (height + AXIS) / 72))
        axes = axes_of(chart, height, lines, values["margin"])
        axes.set_xlabel(f"\u2190 {self.better} better | per cent of LoRA's gain | worse \u2192")
        y = GAP + PITCH / 2
        for group, of_group in groups.items():
            if has_headings:
                beside(axes, y, 0, -LABELS + 4, group, weight="bold")
                y += PITCH
            for line in of_group:
                label = line["label"] if has_headings else group
                beside(axes, y, 0, -LABELS + (14 if has_headings else 4), label)
                draw_line(axes, y, line)
                y += PITCH
            if has_headings:
                y += GAP
        return chart


def axes_of(chart: Figure, height: float, lines: list[dict[str, Any]], margin: float) -> Axes:
    """Between labels and decisions, with 0 and the margin. They contain every interval, so nothing
    is cut off; a unit of y is a point, from the top.
    """
    chart.set_layout_engine("none")  # the axes have a place of their own
    whole = height + AXIS
    width = WIDTH - LABELS - DECISIONS
    axes = chart.add_axes((LABELS / WIDTH, AXIS / whole, width / WIDTH, height / whole))
    left = min(-margin, *(line["low"] for line in lines))
    right = max(margin, *(line["high"] for line in lines))
    space = 0.03 * (right - left)
    axes.set(xlim=(left - space, right + space), ylim=(height, 0), yticks=[])
    axes.axvspan(-margin, margin, color=BAND, zorder=0)
    axes.axvline(0, color="#5d6067", linewidth=1, zorder=0.5)
    return axes


def draw_line(axes: Axes, y: float, line: dict[str, Any]) -> None:
    """An interval, its middle, which is hollow without a decision, and the decision."""
    decision = line["decision"]
    color = COLORS[decision]
    draw_interval(axes, y, line["low"], line["high"], color)
    face = "white" if decision == "undecided" else color
    axes.plot(line["mean"], y, "o", markerfacecolor=face, color=color)
    said = ", ".join(filter(None, [decision, line["words"]]))
    beside(axes, y, 1, 8, said, color=color)


def beside(axes: Axes, y: float, side: float, points: float, text: str, **style: Any) -> None:
    """A text next to the axes, so many points from their left side (0) or their right one (1)."""
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(
        text,
        (side, y),
        (points, 0),
        **place,
        va="center",
        fontsize=10,
        annotation_clip=False,
        **style,
    )


AT_MOST = "at most {} parameters"
FORESTS = [
    Forest("pooled", "the circuit is"),
    Forest("margins", "the circuit is"),
    Forest("equal", "the circuit is", row=AT_MOST, with_words=False),
    Forest("pairs", "the first is", column=AT_MOST),
    Forest("later_pairs", "the first is", column=AT_MOST),
    Forest("epochs", "the circuits are", row="minus {}", column=AT_MOST),
    Forest("angles", "trained angles are", row="learning rate of the angles times {}"),
    Forest("twins", "the first is", column=AT_MOST),
    Forest("circuits", "the circuits are", row="learning rate {}"),
    Forest("sentence_pairs", "the first is"),
    Forest("head_pairs", "the first is"),
    Forest("upper_pairs", "the first is"),
]
