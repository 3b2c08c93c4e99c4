"""The table and the picture of the adapters in examples/adapters, from their files."""

from __future__ import annotations

from matplotlib.figure import Figure
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from qpeft.files import read_json
from real_model import cut
from table_text import table
from winners import ROOT

METRICS = sorted((ROOT / "examples" / "adapters").glob("*/metrics.json"))
STYLES = {"circuit": ("#1559b7", "-o"), "signs": ("#a34a00", "-s")}


def measured() -> dict[str, dict[str, float]]:
    """The loss on held-out conversations in nats per token, by adapter and step."""
    return {file.parent.name: read_json(file)["losses"] for file in METRICS}


def draw(found: dict[str, dict[str, float]]) -> Figure:
    """A line for each adapter."""
    chart = Figure(figsize=(6, 250 / 72))
    axes = chart.add_subplot()
    for name, losses in found.items():
        color, style = STYLES[name]
        axes.plot([*map(int, losses)], [*losses.values()], style, color=color, label=name)
    axes.set(xlabel="steps", title="loss on held-out conversations, nats per token")
    axes.legend()
    return chart


def ready() -> str:
    """Size, loss and an answer of each adapter, after those of their base."""
    rows = []
    for file in METRICS:
        metrics = read_json(file)
        loss = metrics["loss"]
        answer = metrics["answer"]
        if not rows:
            rows = [["no adapter", "", "", f"{loss['before']:.2f}", cut(answer["before"])]]
        parts = [file.with_name(name) for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME)]
        n_bytes = sum(part.stat().st_size for part in parts)
        sizes = [f"{metrics['trainable']:,}", f"{n_bytes:,}"]
        name = f"`{file.parent.name}`"
        rows.append([name, *sizes, f"{loss['after']:.2f}", cut(answer["after"])])
    return table(["adapter", "trainable parameters", "bytes", "loss", "answer"], rows)
