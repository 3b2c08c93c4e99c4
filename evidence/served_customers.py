"""The tables of docs/small_adapters.md on six customers of one base, from the result of `make serve`.

The values are in results/serving.json, which scripts/serve_run.py writes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from qpeft.files import read_json
from qpeft_lab.cli.console import size
from real_model import cut
from table_text import table
from winners import RESULTS

SHOWN = ("ana", "cleo")


@cache
def stored() -> dict[str, Any]:
    """The result of the run."""
    return read_json(RESULTS / "serving.json")


def customers() -> str:
    """Text, loss and bytes of each customer."""
    rows = []
    for name, customer in stored()["customers"].items():
        losses = [f"{customer['loss'][when]:.2f}" for when in ("before", "after")]
        sizes = [f"{customer[part]:,}" for part in ("stored_bytes", "folder_bytes")]
        lora = size(customer["exported_bytes"])
        rows.append([name, customer["text"], *losses, *sizes, lora])
    losses = ["loss before", "loss after"]
    sizes = ["weights, bytes", "folder, bytes", "exported LoRA"]
    return table(["customer", "text", *losses, *sizes], rows, numbers=5)


def answers() -> str:
    """What two customers get for each prompt, next to the base model."""
    result = stored()
    who = {"no adapter": "__base__", **{name: name for name in SHOWN}}
    rows = [
        [f"`{prompt.strip()}`", *(cut(result["answers"][name][place]) for name in who.values())]
        for place, prompt in enumerate(result["prompts"])
    ]
    return table(["prompt", *who], rows)


def times() -> str:
    """Milliseconds of a pool, and of PEFT with the exported adapters."""
    rows = []
    for what, of_each in stored()["milliseconds"].items():
        cells = [
            f"{middle:,.1f} ({least:,.1f} to {most:,.1f})"
            for middle, least, most in of_each.values()
        ]
        rows.append([what, *cells])
    return table(["milliseconds", "pool", "PEFT's `hotswap_adapter`"], rows, numbers=2)
