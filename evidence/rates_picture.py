"""The best learning rate of each adapter on every base: the picture of docs/comparison.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qpeft_lab.compare.rows import succeeded
from smollm2_tables import ordered, stage_1
from suggest_evidence import validation_loss
from winners import summaries_of

STUDIES = ("equal-search", "quantum-adapters", "rates", "smollm2")
FAMILIES = {  # by the first word of a configuration's key
    "lora": "LoRA",
    "qpa": "QPA",
    "framed": "Quantum-PEFT in gradient frames",
    "plain": "Quantum-PEFT without frames",
    "pauli": "Quantum-PEFT without frames",
    "uni": "Uni-LoRA",
}
# of SmolLM2 and MiniLM: the others are controls, whose search followed that of their adapter
ADAPTERS = {"lora_r1", "lora_r2", "lora_r4", "lora_r5", "lora_r8", "qpa", "framed", "pauli", "uni"}
BASES = {  # millions of parameters, in their order
    "stories260K": "0.26",
    "bytes1m": "1.1",
    "embedded": "1.5",
    "llama10m": "10",
    "minilm": "23",
    "smollm2": "135",
}
PANELS = [
    ("LoRA",),
    ("Uni-LoRA",),
    ("QPA",),
    ("Quantum-PEFT in gradient frames", "Quantum-PEFT without frames"),
]
TICKS = (0.0001, 0.001, 0.01, 0.1, 1)
COLORS = ("#1559b7", "#a34a00")
MIN_TRIALS = 3


def measured() -> dict[str, dict[str, list[float]]]:
    """By family and base: the rates with the lowest validation loss, one for each configuration."""
    found: dict[str, dict[str, list[float]]] = {
        name: {base: [] for base in BASES} for name in FAMILIES.values()
    }
    for family, base, rate in _best_rates():
        found[family][base].append(rate)
    return found


def _best_rates() -> Iterator[tuple[str, str, float]]:
    for study in STUDIES:
        for summary in summaries_of(study).values():
            base = Path(summary.study.run.model).name
            for result in summary.results:
                word = result.key.partition("_")[0]
                is_adapter = study != "smollm2" or result.key in ADAPTERS
                if word not in FAMILIES or not is_adapter or len(result.trials) < MIN_TRIALS:
                    continue
                losses = {
                    rate: row["valid_loss"]
                    for rate, row in result.trials.items()
                    if row and succeeded(row)
                }
                yield FAMILIES[word], base, min(losses, key=lambda rate: losses[rate])
    # in stage 1 on SmolLM2 every rate has all seeds, and an entry of its own
    runs = [result for result in stage_1().results if result.key.startswith("framed_")]
    best = min(runs, key=validation_loss)
    assert best.lr is not None
    yield FAMILIES["framed"], "smollm2", best.lr
    for adapter in ordered():  # stage 2 has two rates of each
        if adapter.family in ("uni", "qpa"):
            yield FAMILIES[adapter.family], "smollm2", adapter.best.rate


def draw(found: dict[str, dict[str, list[float]]]) -> Figure:
    """Four panels with equal axes; both kinds of Quantum-PEFT are in the last."""
    chart = Figure(figsize=(10, 6.5))
    plots = chart.subplots(2, 2, sharex=True, sharey=True)
    for axes, families in zip(plots.flat, PANELS, strict=True):
        for color, family in zip(COLORS, families, strict=False):
            _draw_family(axes, found[family], color, family)
        axes.set(yscale="log", title=families[0] if len(families) == 1 else "Quantum-PEFT")
        axes.set_yticks(TICKS, [f"{rate:g}" for rate in TICKS])
        axes.minorticks_off()
        axes.grid(axis="y", which="major")
    plots[-1, -1].legend(loc="upper left")
    for row in plots:
        row[0].set_ylabel("best learning rate")
    for axes in plots[-1]:
        axes.set_xticks(range(len(BASES)), BASES.values())
        axes.set_xlabel("parameters of the base, millions")
    return chart


def _draw_family(axes: Axes, of_base: dict[str, list[float]], color: str, label: str) -> None:
    """Dots for configurations; a line through the median of each base that was measured."""
    known = {place: rates for place, rates in enumerate(of_base.values()) if rates}
    for place, rates in known.items():
        axes.plot([place] * len(rates), rates, "o", color=color, alpha=0.25)
    medians = [median(rates) for rates in known.values()]
    axes.plot([*known], medians, "-D", color=color, label=label)
