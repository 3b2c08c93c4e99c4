"""Pictures of the best adapters with and without a circuit, by the number of trainable parameters; of
the tables of comparisons; of SmolLM2's output head, and of frames for many texts on it; of learning
rates; of the adapters in examples; and that of the guide on a real model.

`python evidence/pictures.py`, a part of `make results`, writes them to docs/static from the rows of a
study. The values that are drawn are in the description of the file. Each has its colors for a dark
page in itself.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import frames_picture
import head_picture
import order_picture
import rates_picture
import ready_adapters
import real_model
from comparisons import mean_loss
from forests import FORESTS
from qpeft.files import write_text
from qpeft_lab.compare.charts import rounded
from qpeft_lab.compare.summary import Result, Summary
from winners import ADAPTERS, FINAL, ROOT, SETUPS, best, summaries_of, winners_of

STATIC = ROOT / "docs" / "static"
STYLE = Path(__file__).with_suffix(".mplstyle")


class Picture(NamedTuple):
    """What is drawn, from stored rows, and how."""

    measured: Callable[[], Any]
    draw: Callable[[Any], Figure]


DARK = {  # colors on a dark page
    "#ffffff": "#15171b",
    "#1c1d20": "#e9e7e1",
    "#3f4248": "#c9ccd2",
    "#5d6067": "#a6abb4",
    "#c4c3bd": "#62666e",
    "#d9d8d2": "#3b3e45",
    "#e9e7df": "#2b2e34",
    "#1559b7": "#82b4ff",
    "#a34a00": "#ffa45c",
    "#1a7a4c": "#62cf98",
}


class Line(NamedTuple):
    color: str
    marker: str


LINES = {
    "best with a circuit": Line("#1559b7", "o"),
    "best without a circuit": Line("#a34a00", "s"),
    "LoRA": Line("#3f4248", "^"),
}


def measured(study: str = FINAL) -> list[dict[str, Any]]:
    """What a picture shows, from the rows: a panel for each setup."""
    return [panel(setup, summary, study) for setup, summary in summaries_of(study).items()]


def panel(setup: str, summary: Summary, study: str) -> dict[str, Any]:
    """Test losses in nats per token; a point is [trainable parameters, loss]."""
    chosen = winners_of(setup, study)
    budgets = sorted({budget for _, budget in chosen})
    trained = [result for result in summary.results if result.metric and result.method.rates]
    kinds = zip(LINES, (True, False), strict=False)
    lines = {
        name: [point(summary[best(chosen, budget, has_circuit).key]) for budget in budgets]
        for name, has_circuit in kinds
    }
    lines["LoRA"] = [point(result) for result in trained if result.key.startswith("lora_")]
    return {
        "title": SETUPS[setup],
        "untrained": point(summary["none"])[1],
        "adapters": [point(result) for result in trained],
        "lines": lines,
    }


def point(result: Result) -> list[float]:
    return [result.method.trainable, round(mean_loss(result), 5)]


def draw(panels: list[dict[str, Any]]) -> Figure:
    """Two panels in a row."""
    n_rows = -(-len(panels) // 2)
    chart = Figure(figsize=(10, n_rows * 300 / 72))
    plots = chart.subplots(n_rows, 2, squeeze=False)
    for axes, shown in zip(plots.flat, panels, strict=False):
        draw_panel(axes, **shown)
    for row in plots:
        row[0].set_ylabel("test loss, nats per token (lower is better)")
    for axes in plots[-1]:
        axes.set_xlabel("trainable parameters")
    plots.flat[0].legend(loc="upper right")
    return chart


def draw_panel(
    axes: Axes,
    title: str,
    untrained: float,
    adapters: list[list[float]],
    lines: dict[str, list[list[float]]],
) -> None:
    sizes, losses = zip(*adapters, strict=True)
    axes.plot(sizes, losses, "o", color="#c4c3bd", markersize=3, label="each adapter")
    for name, points in lines.items():
        color, marker = LINES[name]
        axes.plot(*zip(*points, strict=True), f"-{marker}", color=color, label=name)
    axes.set(xscale="log", ylim=(min(losses) - 0.05, max(losses) + 0.05))
    axes.set_title(f"{title}; no adapter: {untrained:.2f}")
    axes.set_xticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
    axes.set_xlim(min(sizes) / 1.4, 1.4 * max(sizes))
    axes.minorticks_off()


PICTURES = {
    STATIC / "main_result.svg": Picture(partial(measured, FINAL), draw),
    STATIC / "quantum_adapters.svg": Picture(partial(measured, ADAPTERS), draw),
    STATIC / "smollm2_head.svg": Picture(head_picture.measured, head_picture.draw),
    STATIC / "orders.svg": Picture(order_picture.measured, order_picture.draw),
    STATIC / "other_frames.svg": Picture(frames_picture.measured, frames_picture.draw),
    STATIC / "learning_rates.svg": Picture(rates_picture.measured, rates_picture.draw),
    STATIC / "real_model.svg": Picture(real_model.measured, real_model.draw),
    STATIC / "ready_adapters.svg": Picture(ready_adapters.measured, ready_adapters.draw),
    **{STATIC / f"{forest.table}.svg": Picture(forest.measured, forest.draw) for forest in FORESTS},
}


def with_style_sheet(svg: str) -> str:
    """The picture with its styles in a style sheet, each once, and in other colors for readers whose
    system is dark; without a document type, which no reader of SVG needs.
    """
    svg = re.sub("<!DOCTYPE[^>]*> ", "", svg)
    styles = dict.fromkeys(re.findall(' style="([^"]*)"', svg))
    light = ""
    dark = ""
    for number, style in enumerate(styles):
        svg = svg.replace(f' style="{style}"', f' class="s{number}"')
        light += f".s{number}{{{style}}}"
        in_dark = re.sub("#[0-9a-f]{6}", lambda color: DARK[color[0]], style)
        if in_dark != style:
            dark += f".s{number}{{{in_dark.replace(': ', ':')}}}"
    sheet = f"<style>{light}@media (prefers-color-scheme: dark){{{dark}}}</style>"
    return svg.replace("</metadata>", f"</metadata>\n {sheet}", 1)


def main() -> None:
    for file, picture in PICTURES.items():
        values = picture.measured()
        # the ids of a picture are made with the salt; two pictures of a page need different ones
        with matplotlib.style.context(STYLE, after_reset=True):
            matplotlib.rcParams["svg.hashsalt"] = file.stem.replace("_", "-")
            no_date = {"Date": None, "Creator": None}
            metadata = {**no_date, "Description": json.dumps(values)}
            buffer = io.StringIO()
            picture.draw(values).savefig(buffer, format="svg", metadata=metadata)
            write_text(file, with_style_sheet(rounded(buffer.getvalue())))


if __name__ == "__main__":
    main()
