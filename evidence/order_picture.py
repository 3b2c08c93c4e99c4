"""The order of adapters of 500 parameters on SmolLM2, and that on the small bases: stages 2 and 7."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import smollm2_tables
from forests import beside

FRAMED = "#1559b7"
OTHERS = "#a34a00"
WIDTH = 760  # points, as all lengths here
PITCH = 24  # of the places
LABELS = 200  # the width of the names on either side
TOP = 34  # for the words above


def measured() -> list[dict[str, Any]]:
    """By place on the E2E references: the adapter, its other places, and its shares of LoRA's gain."""
    adapters = smollm2_tables.ordered()
    places = smollm2_tables.small_places(adapters)
    reread = smollm2_tables.shakespeare()
    families = [adapter.result.key for adapter in reread]
    shares = [round(smollm2_tables.share_of_shakespeare(adapter).mean) for adapter in reread]
    lines = []
    for adapter in adapters:
        on_shakespeare = families.index(adapter.family)
        lines.append(
            {
                "label": smollm2_tables.ORDERED[adapter.family],
                "small": places[adapter.family],
                "share": round(smollm2_tables.shares(adapter).mean),
                "shakespeare": on_shakespeare + 1,
                "shakespeare_share": shares[on_shakespeare],
                "framed": adapter.family in smollm2_tables.FRAMED,
            }
        )
    return lines


def draw(lines: list[dict[str, Any]]) -> Figure:
    """A line from the place on the small bases to those on both texts of SmolLM2, for each adapter."""
    height = len(lines) * PITCH
    whole = height + TOP
    chart = Figure(figsize=(WIDTH / 72, whole / 72))
    chart.set_layout_engine("none")  # the names have places of their own
    axes = chart.add_axes((LABELS / WIDTH, 0, (WIDTH - 2 * LABELS) / WIDTH, height / whole))
    axes.set(xlim=(0, 2), ylim=(height, 0))
    axes.set_axis_off()
    for place, line in enumerate(lines, start=1):
        color = FRAMED if line["framed"] else OTHERS
        places = (line["small"], place, line["shakespeare"])
        left, middle, right = ((each - 0.5) * PITCH for each in places)
        axes.plot([0, 1, 2], [left, middle, right], "-o", color=color, clip_on=False)
        beside(axes, left, 0, -LABELS + 4, f"{line['small']}  {line['label']}", color=color)
        beside(axes, middle - 0.35 * PITCH, 0.5, -11, f"{line['share']} %", color=color)
        share = f"{line['shakespeare_share']} %"
        beside(axes, right, 1, 12, f"{places[2]}  {line['label']}, {share}", color=color)
    for side, points, words in [
        (0, -LABELS + 4, "on small bases"),
        (0.5, -60, "SmolLM2, E2E references"),
        (1, 12, "SmolLM2, Shakespeare"),
    ]:
        beside(axes, -0.6 * PITCH, side, points, words)
    return chart
