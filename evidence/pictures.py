"""Pictures of the best adapters with and without a circuit, by the number of trainable parameters.

`python evidence/pictures.py`, a part of `make results`, writes them to docs/static from the rows of a
study. The values that are drawn are in the description of the file.
"""

import json
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import picture_style as style
from qpeft_lab.compare.summary import Result, Summary
from winners import ADAPTERS, FINAL, ROOT, SETUPS, best, summaries_of, winners_of

STATIC = ROOT / "docs" / "static"
PICTURES = {
    STATIC / "main_result.svg": FINAL,
    STATIC / "quantum_adapters.svg": ADAPTERS,
}  # if the study has rows
LINES = {  # name of the line, its colour and its marker
    "with a circuit": (style.QUANTUM, "o"),
    "without a circuit": (style.CONTROL, "s"),
    "LoRA": (style.CLASSICAL, "^"),
}


class Panel(NamedTuple):
    """A setup: test losses in nats per token, of points (trainable parameters, loss)."""

    title: str
    untrained: float
    adapters: list[list[float]]
    lines: dict[str, list[list[float]]]


def measured(study: str = FINAL) -> list[Panel]:
    """The values from the rows."""
    return [_panel(name, summary, study) for name, summary in summaries_of(study).items()]


def _panel(setup: str, summary: Summary, study: str) -> Panel:
    chosen = winners_of(setup, study)
    budgets = sorted({budget for _, budget in chosen})
    trained = [found for found in summary.results if found.metric and found.method.rates]
    lines = {
        name: [_point(summary[best(chosen, budget, has_circuit).key]) for budget in budgets]
        for name, has_circuit in zip(LINES, (True, False), strict=False)
    }
    lines["LoRA"] = [_point(found) for found in trained if found.key.startswith("lora_")]
    return Panel(
        SETUPS[setup], _point(summary["none"])[1], [_point(found) for found in trained], lines
    )


def _point(found: Result) -> list[float]:
    assert found.metric is not None
    return [found.method.trainable, round(found.metric.mean, 5)]


def described(text: str) -> list[Panel]:
    """The values in the description of the file."""
    found: list[dict[str, Any]] = json.loads(text)
    return [Panel(**one) for one in found]


def draw(panels: list[Panel]) -> Figure:
    chart = style.figure(height=300 * -(-len(panels) // 2), width=720)
    plots = chart.subplots(-(-len(panels) // 2), 2, squeeze=False)
    for plot, panel in zip(plots.flat, panels, strict=False):
        _draw(plot, panel)
    for row in plots:
        row[0].set_ylabel("test loss, nats per token (lower is better)")
    for plot in plots[-1]:
        plot.set_xlabel("trainable parameters")
    plots.flat[0].legend(loc="upper right")
    return chart


def _draw(plot: Axes, panel: Panel) -> None:
    plot.plot(
        *zip(*panel.adapters, strict=True), "o", color="#c4c3bd", markersize=3, label="each adapter"
    )
    for name, points in panel.lines.items():
        colour, marker = LINES[name]
        label = name if name == "LoRA" else f"best {name}"
        plot.plot(
            *zip(*points, strict=True),
            f"-{marker}",
            color=colour,
            markersize=5,
            linewidth=1.4,
            label=label,
        )
    losses = [loss for _, loss in panel.adapters]
    sizes = [size for size, _ in panel.adapters]
    plot.set(xscale="log", ylim=(min(losses) - 0.05, max(losses) + 0.05))
    plot.set_title(f"{panel.title}; untrained {panel.untrained:.2f}")
    plot.set_xticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
    plot.set_xlim(min(sizes) / 1.4, 1.4 * max(sizes))
    plot.minorticks_off()


def main() -> None:
    for picture, study in PICTURES.items():
        if shown := measured(study):
            with style.style(picture.stem.replace("_", "-")):
                chart = draw(shown)
                chart.set_facecolor("white")
                description = json.dumps([panel._asdict() for panel in shown])
                chart.savefig(
                    picture, metadata={"Date": None, "Creator": None, "Description": description}
                )


if __name__ == "__main__":
    main()
