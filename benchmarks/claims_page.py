"""Writes the tables of docs/quantum_peft_claims.md from the stored results.

    python benchmarks/claims_page.py

The sources are benchmarks/results/orthogonal_maps.json, and the summaries of studies in docs/results. A test
generates the tables again and compares them.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import orthogonal_maps
from orthogonal_maps import markdown
from qpeft.files import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "quantum_peft_claims.md"
BITS = {"embedded": "embedded base, test loss<br>difference from 32 bits"}
Line = dict[str, str]


def main() -> None:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """The page's text with its tables."""
    made = tables()
    return re.sub(
        r"(?m)^(% table: (\w+)\n).*?^(% end\n)",
        lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def tables() -> dict[str, str]:
    """All tables in Markdown, by name."""
    return {
        **orthogonal_maps.tables(json.loads(orthogonal_maps.RESULTS.read_text(encoding="utf-8"))),
        "bits": bits(),
    }


def bits() -> str:
    """The quality of each number of bits on every setup, with its difference from 32 bits."""
    found = {setup: summary(setup, "bits") for setup in BITS}
    first = found["embedded"]
    head = ["angles", "parameters", "bytes", *BITS.values()]
    keys = [key for key in first if first[key]["method"] != "none"]
    return markdown(
        head,
        ([first[key]["label"], *sizes(first[key]), *(scored(lines[key]) for lines in found.values())] for key in keys),
    )


def summary(setup: str, study: str) -> dict[str, Line]:
    """The lines of a summary by method."""
    with (DOCS / "results" / setup / study / "summary.csv").open(encoding="utf-8", newline="") as file:
        return {line["key"]: line for line in csv.DictReader(file)}


def sizes(line: Line) -> list[str]:
    return [f"{int(line['trainable']):,}", f"{round(float(line['bytes_stored'])):,}"]


def scored(line: Line) -> str:
    """Mean, standard deviation, and the difference with its interval."""
    text = f"{float(line['metric.mean']):.3f} ± {float(line['metric.sd']):.3f}"
    difference = "control" if line["control.mean"] else "delta"
    if not line[f"{difference}.mean"]:
        return text
    middle, low, high = (float(line[f"{difference}.{end}"]) for end in ("mean", "low", "high"))
    return f"{text}<br>{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
