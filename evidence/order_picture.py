"""The order of adapters of 500 parameters on SmolLM2, and that on the small bases: stage 2."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import smollm2_tables
from forests import beside

FRAMED = "#1559b7"
OTHERS = "#a34a00"
WIDTH = 660  # points, as all lengths here
PITCH = 24  # of the places
LABELS = 190  # the width of the names on either side
TOP = 34  # for the words above


def measured() -> list[dict[str, Any]]:
    """By place on SmolLM2: the adapter, its place on the small bases, and its share of LoRA's gain."""
    adapters = smollm2_tables.ordered()
    places = smollm2_tables.small_places(adapters)
    return [
        {
            "label": smollm2_tables.ORDERED[adapter.family],
            "small": places[adapter.family],
            "share": round(smollm2_tables.shares(adapter).mean),
            "framed": adapter.family in smollm2_tables.FRAMED,
        }
        for adapter in adapters
    ]


def draw(lines: list[dict[str, Any]]) -> Figure:
    """A line from the place on the small bases to that on SmolLM2, for each adapter."""
    height = len(lines) * PITCH
    whole = height + TOP
    chart = Figure(figsize=(WIDTH / 72, whole / 72))
    chart.set_layout_engine("none")  # the names have places of their own
    axes = chart.add_axes((LABELS / WIDTH, 0, (WIDTH - 2 * LABELS) / WIDTH, height / whole))
    axes.set(xlim=(0, 1), ylim=(height, 0))
    axes.set_axis_off()
    for place, line in enumerate(lines, start=1):
        color = FRAMED if line["framed"] else OTHERS
        left, right = ((each - 0.5) * PITCH for each in (line["small"], place))
        axes.plot([0, 1], [left, right], "-o", color=color, clip_on=False)
        beside(axes, left, 0, -LABELS + 4, f"{line['small']}  {line['label']}", color=color)
        beside(axes, right, 1, 12, f"{place}  {line['label']}, {line['share']} %", color=color)
    for side, points, words in [
        (0, -LABELS + 4, "on small bases (400 parameters)"),
        (1, 12, "on SmolLM2 (500 parameters)"),
    ]:
        beside(axes, -0.6 * PITCH, side, points, words)
    return chart
