"""The picture of a model card: the held-out loss of a run against its steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qpeft_lab.training.run_folder import RunFolder, read_rows

_COLOR = "#1559b7"


def draw(run: RunFolder, unit: str, file: Path) -> bool:
    """Write the picture as PNG, which every page of a hub shows; False without two evaluations.

    `unit` is that of the loss. Raises CheckpointError if the run's metrics are damaged.
    """
    losses = {row["step"]: row["eval_loss"] for row in read_rows(run.metrics) if "eval_loss" in row}
    if len(losses) < 2:
        return False
    figure = Figure(figsize=(6, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([*losses], [*losses.values()], "o-", color=_COLOR)
    for step in (min(losses), max(losses)):
        axes.annotate(
            f"{losses[step]:.3f}", (step, losses[step]), (0, 6), textcoords="offset points"
        )
    axes.set(xlabel="steps", ylabel=unit, title="Loss on held-out data")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1, y=0.15)
    figure.savefig(file, metadata={"Software": None})
    return True
