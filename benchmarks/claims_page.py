"""Writes the tables of docs/quantum_peft_claims.md from the stored results.

    python benchmarks/claims_page.py

The sources are benchmarks/results/orthogonal_maps.json, and rows and summaries of studies in docs/results. A test
generates the tables again and compares them.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import mean

import orthogonal_maps
from orthogonal_maps import markdown
from qpeft.compare.rows import Row, read_rows
from qpeft.files import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "quantum_peft_claims.md"
STUDIES = {  # setup, study, and the titles of the first and the last column
    "bits": ("embedded", "bits", "angles", "embedded base, test loss<br>difference from 32 bits"),
    "bits_vision": ("digits", "bits", "angles", "digits, accuracy in %<br>difference from 32 bits"),
    "bits_cifar10": ("cifar10", "bits", "angles", "CIFAR-10, accuracy in %<br>difference from 32 bits"),
    "maps": (
        "grimm",
        "orthogonal-maps",
        "map",
        "Grimm's tales, test loss<br>difference from 7 layers (frozen: from 2 layers)",
    ),
}
SETUPS = {"embedded": "embedded base", "grimm": "Grimm", "wikitext": "WikiText"}  # of the survey
RANKS = ("numerical", "effective", "stable")
OF_RANK = {  # methods of the survey
    "full": "full fine-tuning",
    "lora": "LoRA r=8",
    "lora@qaa": "LoRA r=1",
    "quantum_peft": "Quantum-PEFT r=8",
    "quantum_peft@qaa": "Quantum-PEFT r=32",
    "qpa": "QPA over LoRA r=8",
    "uni_lora@quantum_peft": "Uni-LoRA over LoRA r=4",
    "fourierft@quantum_peft": "FourierFT",
}
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
        **{name: of_study(*study) for name, study in STUDIES.items()},
        "ranks": ranks(),
    }


def of_study(setup: str, study: str, item: str, metric: str) -> str:
    """The methods of a study with parameters, bytes, and the difference from its reference."""
    found = summary(setup, study)
    return markdown(
        [item, "parameters", "bytes", metric],
        ([line["label"], *sizes(line), scored(line)] for line in found.values() if line["method"] != "none"),
    )


def ranks() -> str:
    """Ranks of the trained weight changes: means over modules and seeds."""
    found = {setup: read_rows(DOCS / "results" / setup / "survey") for setup in SETUPS}
    head = [
        "method",
        "parameters<br>embedded; stories260K",
        *(f"{title}:<br>{', '.join(RANKS)}" for title in SETUPS.values()),
    ]
    lines = []
    for key, label in OF_RANK.items():
        rows = [
            [row for row in rows.values() if row.method == key and row.name.startswith("seed")]
            for rows in found.values()
        ]
        sizes = dict.fromkeys(f"{trained[0].cost.params_trainable:,}" for trained in rows)
        lines.append([label, "; ".join(sizes), *(measured_ranks(trained) for trained in rows)])
    return markdown(head, lines)


def measured_ranks(rows: list[Row]) -> str:
    return ", ".join(f"{mean(getattr(row.capacity, f'weight_{name}_rank') for row in rows):.1f}" for name in RANKS)


def summary(setup: str, study: str) -> dict[str, Line]:
    """The lines of a summary by method."""
    with (DOCS / "results" / setup / study / "summary.csv").open(encoding="utf-8", newline="") as file:
        return {line["key"]: line for line in csv.DictReader(file)}


def sizes(line: Line) -> list[str]:
    return [f"{int(line['trainable']):,}", f"{round(float(line['bytes_stored'])):,}"]


def scored(line: Line) -> str:
    """Mean, standard deviation, and the difference with its interval; accuracies in percent."""
    factor, digits = (100, 1) if float(line["quality.test_accuracy.n"] or 0) else (1, 3)
    difference = "control" if line["control.mean"] else "delta"

    def number(name: str, sign: str = "") -> str:
        return f"{factor * float(line[name]):{sign}.{digits}f}"

    text = f"{number('metric.mean')} ± {number('metric.sd')}"
    if not line[f"{difference}.mean"]:
        return text
    low, high = (number(f"{difference}.{end}", "+") for end in ("low", "high"))
    return f"{text}<br>{number(f'{difference}.mean', '+')} [{low}, {high}]"


if __name__ == "__main__":
    main()
