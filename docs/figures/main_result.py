"""The picture of the README: test loss against trainable parameters, quantum methods next to their classical controls.

`PYTHONPATH=docs/extensions python docs/figures/main_result.py` writes docs/static/main_result.svg from the measurements
in docs/results and benchmarks/results. The values that are drawn are stored in the file's description.
"""

import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import figure_style as style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "static" / "main_result.svg"
# name in the legend -> marker and colour; a control has the marker of its method, hollow
FAMILIES = {
    "LoRA": ("s", style.CLASSICAL),
    "Uni-LoRA": ("x", style.CLASSICAL),
    "QPA": ("o", style.QUANTUM),
    "QPA, the paper's network": ("D", "#7a3f9d"),
    "Quantum-PEFT": ("^", style.CONTROL),
    "Quantum-PEFT in gradient frames": ("v", "#1d7a4c"),
}
# keys of the study docs/results/stories-grimm/sizes, without the size -> family, whether it is a control
STUDY = {
    "qpa": ("QPA", False),
    "frozen": ("QPA", True),
    "random": ("QPA", True),
    "paper": ("QPA, the paper's network", False),
    "lora@qpa": ("LoRA", False),
    "uni_lora@qpa": ("Uni-LoRA", False),
}
# the same for benchmarks/results/small_budgets_grimm.json
SMALL = {
    "lora-r1": ("LoRA", False),
    "uni-lora-1300": ("Uni-LoRA", False),
    "plain-L1-r8": ("Quantum-PEFT", False),
    "plain-L2-r8": ("Quantum-PEFT", False),
    "plain-L4-r32": ("Quantum-PEFT", False),
    "plain-L1-r8-signs": ("Quantum-PEFT", True),
    "framed-type-R32-r5": ("Quantum-PEFT in gradient frames", False),
    "framed-own-R16-r16": ("Quantum-PEFT in gradient frames", False),
    "core-R3": ("Quantum-PEFT in gradient frames", True),
    "core-R6": ("Quantum-PEFT in gradient frames", True),
}


class Point(NamedTuple):
    """Mean test loss in nats per token over seeds, with half the width of its 95 % interval (Student's t)."""

    family: str
    is_control: bool
    trainable: int
    loss: float
    half: float


def point(place: tuple[str, bool], trainable: int, loss: float, deviation: float, n: int) -> Point:
    return Point(*place, trainable, round(loss, 4), round(float(t.ppf(0.975, n - 1)) * deviation / n**0.5, 4))


def study() -> list[Point]:
    path = ROOT / "docs" / "results" / "stories-grimm" / "sizes" / "summary.csv"
    with path.open(encoding="utf-8") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    found = [(STUDY[key.rpartition("_")[0]], row) for key, row in rows.items() if key != "none"]
    return [
        point(place, int(row["trainable"]), float(row["metric.mean"]), float(row["metric.sd"]), int(row["metric.n"]))
        for place, row in found
    ]


def small() -> list[Point]:
    path = ROOT / "benchmarks" / "results" / "small_budgets_grimm.json"
    rows = {row["method"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    found = [(SMALL[key], rows[key]["trainable"], rows[key]["test"]) for key in SMALL]
    return [point(place, count, mean(losses), stdev(losses), len(losses)) for place, count, losses in found]


def draw() -> Figure:
    chart = style.figure(height=350, width=680)
    left, right = chart.subplots(1, 2)
    panel(left, study(), "one epoch, 244 steps of 1,024 tokens")
    panel(right, small(), "300 steps of 512 tokens, small budgets")
    handles = {
        label: line for plot in (left, right) for line, label in zip(*plot.get_legend_handles_labels(), strict=True)
    }
    chart.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return chart


def panel(plot: Axes, points: list[Point], title: str) -> None:
    for family, is_control, trainable, loss, half in points:
        marker, colour = FAMILIES[family]
        label = f"{family}: classical control" if is_control else family
        plot.errorbar(
            trainable, loss, half, color=colour, marker=marker, markersize=11 if is_control else 6, linestyle="none",
            markerfacecolor="none" if is_control else colour, capsize=2, linewidth=1, label=label,
        )  # fmt: skip
    plot.set(xscale="log", title=title, xlabel="trainable parameters", ylabel="test loss, nats per token")
    smallest, largest = min(p.trainable for p in points), max(p.trainable for p in points)
    plot.set_xticks([tick for tick in (300, 1_000, 3_000, 10_000, 30_000) if 0.7 * smallest < tick < 1.5 * largest])
    plot.xaxis.set_major_formatter("{x:,.0f}")
    plot.minorticks_off()


def main() -> None:
    with style.style("main-result"):
        chart = draw()
        chart.set_facecolor("white")
        description = json.dumps([study(), small()])
        chart.savefig(PICTURE, metadata={"Date": None, "Creator": None, "Description": description})


if __name__ == "__main__":
    main()
