"""Recompute the table of the equal search from its rows with Python's standard library alone, and print its cells.

    python benchmarks/recompute_protocol.py results/equal-search-final/*.jsonl.xz

A line per cell, budget by budget, in the order of the files; the intervals are those of results/PROTOCOL.md, section 2.
"""

from __future__ import annotations

import json
import lzma
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from recompute_summary import correct, quantile, tail

CIRCUITS = {"qpa", "plain", "framed"}


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the seeds by adapter, sorted by seed."""
    _, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["method"], []).append(row)
    return found


def best(rows: dict[str, list[dict[str, Any]]], most: int, has_circuit: bool) -> list[dict[str, Any]]:
    fits = [
        of for key, of in rows.items()
        if key != "none" and of[0]["params_trainable"] <= most and (key.rsplit("_", 1)[0] in CIRCUITS) == has_circuit
    ]  # fmt: skip
    return min(fits, key=lambda of: statistics.mean(row["valid_loss"] for row in of))


def difference(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Mean, standard error and degrees of freedom of the difference of the blocks of each seed."""
    table = [
        [a - b for a, b in zip(one["test_losses"], other["test_losses"], strict=True)]
        for one, other in zip(ours, others, strict=True)
    ]
    seeds, blocks = [statistics.mean(row) for row in table], [statistics.mean(row) for row in zip(*table, strict=True)]
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (seeds, blocks)))
    return statistics.mean(seeds), error, len(seeds) - 1


def main(files: list[Path]) -> None:
    setups = [read(file) for file in files]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    inside: dict[tuple[str, str], dict[str, Any]] = {}
    for most in (128, 400, 1300, 5000):
        for number, rows in enumerate(setups):
            mean, error, df = difference(best(rows, most, True), best(rows, most, False))
            lora, base = rows["lora_5000"], rows["none"] * len(rows["lora_5000"])
            margin = 0.02 * -difference(lora, base)[0]
            place = str(most), str(number)
            cells[place] = {"mean": mean, "reach": quantile(df) * error, "p": tail(abs(mean) / error, df)}
            above = (margin - abs(mean)) / error  # one-sided
            inside[place] = {"p": tail(above, df) / 2 if above > 0 else 1 - tail(-above, df) / 2}
    correct(cells)
    correct(inside)
    for place, cell in cells.items():
        mean, reach = cell["mean"], cell["reach"]
        shown = ("better" if mean < 0 else "worse") if cell["p_holm"] < 0.05 else "open"
        verdict = "equivalent" if inside[place]["p_holm"] < 0.05 else shown
        print(f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], {verdict}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
