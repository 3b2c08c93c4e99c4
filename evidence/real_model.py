"""The tables and the picture of docs/real_model.md, from the result of `make real`.

The values are in results/real_model.json, which scripts/real_run.py writes; those of the encoder in
evidence/encoder.jsonl.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qpeft.files import read_json
from qpeft_lab.cli.console import size
from table_text import table
from winners import RESULTS

LABELS = {  # in the order of the tables
    "lora_r8": "LoRA r=8",
    "qpa": "QPA",
    "lora_r1": "LoRA r=1",
    "suggested": "`--method auto`",
}
COLORS = {"lora_r8": "#3f4248", "qpa": "#1559b7", "lora_r1": "#a34a00", "suggested": "#1a7a4c"}
MEAN_OF = 10  # steps
SHOWN = (0, 5)  # prompts
LONGEST = 150  # letters of an answer that are shown


@cache
def stored() -> dict[str, Any]:
    """The result of the run."""
    return read_json(RESULTS / "real_model.json")


def adapters() -> str:
    """Size, loss, BLEU and time of each adapter, below the base."""
    result = stored()
    some = result["adapters"]["lora_r8"]
    frames = size(result["frames"]["bytes"])
    labels = {**LABELS, "suggested": f"{LABELS['suggested']}, with a shared file of {frames}"}
    untrained_loss = f"{some['loss']['before']:.2f}"
    rows = [["no adapter", "0", "", "", untrained_loss, f"{some['bleu']['base']:.0f}", ""]]
    for name, label in labels.items():
        adapter = result["adapters"][name]
        rows.append(
            [
                label,
                f"{adapter['trainable']:,}",
                size(adapter["stored_bytes"]),
                size(adapter["exported_bytes"]),
                f"{adapter['loss']['after']:.2f}",
                f"{adapter['bleu']['adapted']:.0f}",
                f"{adapter['processor_seconds'] / 60:.1f}",
            ]
        )
    sizes = ["trainable parameters", "compact file", "exported"]
    return table(["adapter", *sizes, "loss", "BLEU", "processor minutes"], rows, numbers=6)


def answers() -> str:
    """What the base and each adapter answer to some prompts, and one of the references."""
    result = stored()
    texts = {"no adapter": result["base_texts"]}
    texts |= {label: result["adapters"][name]["texts"] for name, label in LABELS.items()}
    texts["a person"] = result["references"]
    facts = [result["prompts"][place].split("<|im_start|>user\n")[1] for place in SHOWN]
    header = ["", *(fact.partition("<|im_end|>")[0] for fact in facts)]
    rows = [[who, *(cut(own[place]) for place in SHOWN)] for who, own in texts.items()]
    return table(header, rows)


def first_look() -> str:
    """Of the README: what some adapters answer to the first prompt, with loss, BLEU and size."""
    result = stored()
    some = result["adapters"]["lora_r8"]
    untrained = cut(result["base_texts"][0])
    rows = [
        [
            "no adapter",
            untrained,
            f"{some['loss']['before']:.2f}",
            f"{some['bleu']['base']:.0f}",
            "",
        ]
    ]
    labels = {**LABELS, "suggested": f"{LABELS['suggested']}, no circuit"}
    for name, label in labels.items():
        adapter = result["adapters"][name]
        loss = adapter["loss"]["after"]
        bleu = adapter["bleu"]["adapted"]
        answer = cut(adapter["texts"][0])
        rows.append([label, answer, f"{loss:.2f}", f"{bleu:.0f}", size(adapter["stored_bytes"])])
    return table(["", "answer", "loss", "BLEU", "compact file"], rows, numbers=3)


def encoder() -> str:
    """Accuracy on SST-2 and size of each adapter of a sentence encoder, from evidence/encoder.jsonl."""
    rows = []
    stored = Path(__file__).with_name("encoder.jsonl").read_text("utf-8")
    for row in map(json.loads, stored.splitlines()):
        after = row["after"]
        words = row["options"].split()
        low, high = (f"{100 * after[f'accuracy_{end}']:.1f}%" for end in ("low", "high"))
        rows.append(
            [
                row["label"],
                words[words.index("--lr") + 1],
                f"{row['trainable'] - row['trainable_head']:,}",
                f"{row['trainable_head']:,}",
                f"{row['stored_bytes']:,}",
                f"{100 * after['accuracy']:.1f}%",
                f"{low} to {high}",
            ]
        )
    sizes = ["learning rate", "parameters", "head", "file, bytes", "accuracy", "95 % interval"]
    return table(["adapter", *sizes], rows, numbers=6)


def cut(text: str) -> str:
    """The text, or its beginning, in a cell of a table."""
    plain = " ".join(text.replace("|", " ").split())
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST].rpartition(' ')[0]} ..."


def took(result: dict[str, Any]) -> str:
    """What a whole run takes."""
    minutes = result["processor_seconds"] / 60
    return (
        f"All commands together took {minutes:.0f} minutes of processor time on a server, summed over"
        f" its cores. The largest process used {result['megabytes'] / 1000:.1f} GB of memory."
    )


def measured() -> dict[str, list[float]]:
    """The lines of the picture: the loss of the training batches, averaged over the last steps."""
    lines = {}
    for name, label in LABELS.items():
        losses = stored()["adapters"][name]["losses"]
        parts = [losses[max(0, end - MEAN_OF) : end] for end in range(1, len(losses) + 1)]
        lines[label.strip("`")] = [round(sum(part) / len(part), 4) for part in parts]
    return lines


def draw(lines: dict[str, list[float]]) -> Figure:
    """A line for each adapter, with its name at its end."""
    chart = Figure(figsize=(10, 4.5))
    axes = chart.subplots()
    place = 0.0
    for (label, line), color in sorted(
        zip(lines.items(), COLORS.values(), strict=True), key=lambda named: named[0][1][-1]
    ):
        steps = range(1, len(line) + 1)
        axes.plot(steps, line, color=color, linewidth=2)
        place = max(place, line[-1])  # names do not overlap
        axes.text(len(line) + 0.5, place, label, color=color, va="center")
        place += 0.07
    axes.set_xlim(1, len(line) * 1.2)
    axes.set_xlabel("steps of 4 conversations")
    axes.set_ylabel("training loss, nats per token")
    axes.set_title(f"Mean of the last {MEAN_OF} steps")
    return chart
