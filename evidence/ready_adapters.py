"""The table of the adapters in examples/adapters, from their files."""

from __future__ import annotations

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from qpeft.files import read_json
from real_model import cut
from table_text import table
from winners import ROOT


def ready() -> str:
    """Size, loss and an answer of each adapter, after those of their base."""
    rows = []
    for file in sorted((ROOT / "examples" / "adapters").glob("*/metrics.json")):
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
