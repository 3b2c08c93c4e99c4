"""What each adapter of SmolLM2's output head gains: the picture of the README, from stage 4."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import smollm2_tables
from comparisons import mean_loss
from forests import beside
from qpeft_lab.compare.summary import Result

WIDTH = 660  # points, as all lengths here
LABELS = 245  # left of the dots
PITCH = 26  # of the lines
AXIS = 44  # below them

KINDS = {  # an adapter of the study, and what is in it
    "qpa": "circuit",
    "qpa_frozen": "no trained circuit",
    "qpa_random": "no trained circuit",
    "uni": "no trained circuit",
    "lora_r4": "LoRA",
    "lora_r2": "LoRA",
}
COLORS = {"circuit": "#1559b7", "no trained circuit": "#a34a00", "LoRA": "#3f4248"}


def measured() -> list[dict[str, Any]]:
    """A line for each adapter, the best first: its gain in nats per token, and that of each seed."""
    summary = smollm2_tables.stage_4()
    untrained = mean_loss(summary["none"])

    def gains(result: Result) -> list[float]:
        losses = (row["test_loss"] for _, row in sorted(result.successes.items()))
        return [round(untrained - loss, 4) for loss in losses]

    lines = [
        {
            "label": f"{summary[key].label}: {summary[key].method.trainable:,}",
            "kind": kind,
            "mean": round(untrained - mean_loss(summary[key]), 4),
            "seeds": gains(summary[key]),
        }
        for key, kind in KINDS.items()
    ]
    return sorted(lines, key=lambda line: -line["mean"])


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Dots for the seeds, a large one for their mean, and the mean in words at the right."""
    height = len(lines) * PITCH
    whole = height + AXIS
    chart = Figure(figsize=(WIDTH / 72, whole / 72))
    chart.set_layout_engine("none")  # the labels have a place of their own
    right = 50
    place = (LABELS / WIDTH, AXIS / whole, (WIDTH - LABELS - right) / WIDTH, height / whole)
    axes = chart.add_axes(place)
    all_gains = [gain for line in lines for gain in line["seeds"]]
    axes.set(xlim=(min(all_gains) - 0.01, max(all_gains) + 0.01), ylim=(height, 0), yticks=[])
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MultipleLocator(0.05))
    axes.set_xlabel("what the test loss falls by, nats per token (more is better)")
    for number, line in enumerate(lines):
        y = (number + 0.5) * PITCH
        color = COLORS[line["kind"]]
        axes.plot(line["seeds"], [y] * len(line["seeds"]), "o", color=color, alpha=0.35)
        axes.plot(line["mean"], y, "o", color=color, markersize=9)
        for side, points, text in [(0, -LABELS + 4, line["label"]), (1, 8, f"{line['mean']:.2f}")]:
            beside(axes, y, side, points, text, color=color)
    return chart
