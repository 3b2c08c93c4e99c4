"""What an adapter keeps of its gain in frames that were fitted on other texts: stage 3 on SmolLM2."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import dots
import smollm2_tables
from dots import Dots

OF_TEXTS = "#1559b7"
RANDOM = "#a34a00"


def measured() -> list[dict[str, Any]]:
    """A line for each frame, the best first: per cent of the gain in the own frame, for each text."""
    lines = [
        {
            "label": frame.label,
            "mean": round(100 - frame.lost.mean, 1),
            "texts": [round(100 - lost, 1) for lost in frame.of_texts],
            "kept": frame.kept,
        }
        for frame in smollm2_tables.frames()
    ]
    return sorted(lines, key=lambda line: -line["mean"])


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Dots for the texts, a large one for their mean; a line where a fifth of the gain is lost."""
    chart = dots.draw(
        [
            Dots(
                line["label"],
                line["texts"],
                line["mean"],
                line["kept"],
                RANDOM if line["label"] == "random directions" else OF_TEXTS,
            )
            for line in lines
        ],
        title="per cent of the gain in a frame of the own text (more is better)",
        ticks=10,
        labels=170,
        words=120,
    )
    (axes,) = chart.axes
    axes.set_xlim(right=102)  # up to the frame of the own text
    axes.axvline(100 - smollm2_tables.MOST_LOST, color="#5d6067", linestyle="--", zorder=0.5)
    return chart
