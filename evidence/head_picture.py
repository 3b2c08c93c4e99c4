"""What each adapter of SmolLM2's output head gains: the picture of the README, from stage 4."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import dots
import smollm2_tables
from comparisons import mean_loss
from dots import Dots
from qpeft_lab.compare.summary import Result

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
    return dots.draw(
        [
            Dots(
                line["label"],
                line["seeds"],
                line["mean"],
                f"{line['mean']:.2f}",
                COLORS[line["kind"]],
            )
            for line in lines
        ],
        title="what the test loss falls by, nats per token (more is better)",
        ticks=0.05,
        labels=245,
        words=50,
    )
