"""The picture of the README: test loss against trainable parameters of the adapters of the study `budgets`.

`PYTHONPATH=docs/extensions python docs/figures/main_result.py`, a part of `make results`, writes
docs/static/main_result.svg from the rows. The values that are drawn are stored in the file's description.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import figure_style as style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qpeft_lab.compare.summary import load

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "static" / "main_result.svg"
ROWS = ROOT / "results" / "budgets" / "grimm.jsonl.xz"
BUDGETS = (50, 130, 400, 1300, 5000, 50_000)
LORA = {"lora_r1_head": "LoRA r=1", "lora_r2_head": "r=2", "lora_r4_head": "r=4", "lora_r8_head": "r=8"}
# methods on the line of the best, in a few words, and whether they have circuits of more than one qubit
WORDS = {
    "type_R2": ("rotations of a plane", False),
    "type_R4": ("circuits", True),
    "type_lie_head": ("Lie rotations", False),
    "core_R6_head": ("small matrices", False),
    "uni_5k_head": ("Uni-LoRA, QPA", False),
    "uni_50k_head": ("Uni-LoRA", False),
}


class Point(NamedTuple):
    """An adapter: its key in the study, its trainable parameters, and its mean test loss in nats per token."""

    key: str
    trainable: int
    loss: float


class Drawn(NamedTuple):
    """What the picture shows."""

    base: float
    adapters: list[Point]
    best: list[Point]
    lora: list[Point]


def measured() -> Drawn:
    """The values from the rows."""
    summary = load(ROWS)
    ran = [one for one in summary.results if one.metric and not one.has_failures]
    points = {one.key: Point(one.key, one.method.trainable, round(one.metric.mean, 5)) for one in ran if one.metric}
    adapters = [points[one.key] for one in ran if one.method.rates]
    best = [min((p for p in adapters if p.trainable <= budget), key=lambda p: p.loss) for budget in BUDGETS]
    return Drawn(points["none"].loss, adapters, best, [points[key] for key in LORA])


def described(text: str) -> Drawn:
    """The values in the description of the file."""
    found: dict[str, Any] = json.loads(text)
    points = {name: [Point(*values) for values in found[name]] for name in ("adapters", "best", "lora")}
    return Drawn(base=found["base"], **points)


def draw(shown: Drawn) -> Figure:
    chart = style.figure(height=380, width=720)
    plot = chart.subplots()
    plot.axhline(shown.base, color=style.CLASSICAL, linestyle="--", linewidth=1)
    _say(plot, "untrained base", (90_000, shown.base), (0, 5), style.CLASSICAL, "right")
    sizes, losses = ([getattr(p, name) for p in shown.adapters] for name in ("trainable", "loss"))
    plot.plot(sizes, losses, "o", color="#c4c3bd", markersize=4)
    _say(plot, "each dot is one of 94 adapters", (300, 3.35), (4, 8), style.MUTED, "left")
    _line(plot, shown.lora, style.CLASSICAL)
    for point in shown.lora:
        _say(plot, LORA[point.key], point[1:], (2, 8), style.CLASSICAL, "left")
    _line(plot, shown.best, style.QUANTUM)
    for point in shown.best:
        words, has_circuit = WORDS[point.key]
        colour = style.QUANTUM if has_circuit else "white"
        plot.plot(*point[1:], "o", markersize=7, markerfacecolor=colour, markeredgecolor=style.QUANTUM)
        _say(plot, f"{point.trainable:,}: {words}", point[1:], (-7, -13), style.QUANTUM, "right")
    about = "the best within 50, 130, 400, 1,300, 5,000 and\n50,000 parameters; up to 1,300 in gradient frames\n"
    _say(plot, about + "hollow: no circuit, or one qubit", (7, 2.66), (0, 0), style.QUANTUM, "left")
    plot.set(xscale="log", xlim=(6, 110_000), ylim=(2.6, 3.76))
    plot.set(xlabel="trainable parameters", ylabel="test loss, nats per token (lower is better)")
    plot.set_xticks([10, 100, 1_000, 10_000, 100_000])
    plot.xaxis.set_major_formatter("{x:,.0f}")
    plot.minorticks_off()
    return chart


def _line(plot: Axes, points: list[Point], colour: str) -> None:
    plot.plot([p.trainable for p in points], [p.loss for p in points], "-o", color=colour, markersize=4, linewidth=1.5)


def _say(plot: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str, align: str) -> None:
    """A label next to a point, `offset` in pixels."""
    plot.annotate(text, at, offset, textcoords="offset points", color=colour, ha=align, fontsize=style.FONT)


def main() -> None:
    with style.style("main-result"):
        shown = measured()
        chart = draw(shown)
        chart.set_facecolor("white")
        description = json.dumps(shown._asdict())
        chart.savefig(PICTURE, metadata={"Date": None, "Creator": None, "Description": description})


if __name__ == "__main__":
    main()
