"""Recompute the tables of the equal search from its rows with Python's standard library alone, and print their cells.

    python benchmarks/recompute_protocol.py results/equal-search-final/*.jsonl.xz

A line per cell: first the table `equal`, budget by budget, in the order of the files; then `pairs`.
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

CIRCUITS, BUDGETS = {"qpa", "plain", "framed"}, (128, 400, 1300, 5000)
SEARCHES = {"embedded-shakespeare.jsonl.xz": "embedded-numpy.jsonl.xz"}
PAIRS = [("qpa", "uni"), ("qpa", "lora"), *(("framed", other) for other in ("signs", "lie", "core", "uni"))]
Rows = dict[str, list[dict[str, Any]]]


def read(file: Path) -> Rows:
    """The rows by method, sorted by seed."""
    _, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
    found: Rows = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["method"], []).append(row)
    return found


def best(search: Rows, most: int, has_circuit: bool) -> str:
    """FAMILY_BUDGET of the trial with the lowest validation loss, within its budget and with at most `most`."""
    losses: dict[str, float] = {}
    for key, rows in search.items():
        winner = key.rpartition("_")[0]
        family, _, budget = winner.rpartition("_")
        trials = [row for row in rows if row["role"] == "tuning" and row["status"] == "success"]
        for row in trials if (family in CIRCUITS) == has_circuit else ():
            if row["params_trainable"] <= min(int(budget), most):
                losses[winner] = min(row["valid_loss"], losses.get(winner, math.inf))
    return min(losses, key=lambda winner: losses[winner])


def difference(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean and standard error of the difference of the blocks of each seed."""
    both = zip(ours, others, strict=True)
    table = [[a - b for a, b in zip(x["test_losses"], y["test_losses"], strict=True)] for x, y in both]
    seeds, blocks = [statistics.mean(row) for row in table], [statistics.mean(row) for row in zip(*table, strict=True)]
    return statistics.mean(seeds), math.sqrt(sum(statistics.variance(v) / len(v) for v in (seeds, blocks)))


def show(cells: list[tuple[float, float, float]]) -> None:
    """A line for each mean, standard error and margin, with the verdict among all of them; ten seeds."""
    differ = {(str(i), ""): {"p": tail(abs(mean) / error, 9)} for i, (mean, error, _) in enumerate(cells)}
    inside: dict[tuple[str, str], dict[str, Any]] = {}
    for i, (mean, error, margin) in enumerate(cells):
        above = (margin - abs(mean)) / error
        inside[str(i), ""] = {"p": tail(above, 9) / 2 if above > 0 else 1 - tail(-above, 9) / 2}
    correct(differ)
    correct(inside)
    for (mean, error, _), one, other in zip(cells, differ.values(), inside.values(), strict=True):
        shown = ("better" if mean < 0 else "worse") if one["p_holm"] < 0.05 else "open"
        verdict, reach = "equivalent" if other["p_holm"] < 0.05 else shown, quantile(9) * error
        print(f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], {verdict}")


def main(files: list[Path]) -> None:
    setups = [read(file) for file in files]
    searches = [read(file.parents[1] / "equal-search" / SEARCHES.get(file.name, file.name)) for file in files]
    margins = [0.02 * -difference(rows["lora_5000"], rows["none"] * 10)[0] for rows in setups]
    chosen = [{(most, has): best(rows, most, has) for most in BUDGETS for has in (True, False)} for rows in searches]
    found = list(zip(setups, chosen, margins, strict=True))
    show([(*difference(s[c[b, True]], s[c[b, False]]), margin) for b in BUDGETS for s, c, margin in found])
    means = []
    for ours, other in PAIRS:
        for most in BUDGETS:
            keys = f"{ours}_{most}", f"{other}_{most}"
            if all(key in rows for rows in setups for key in keys):
                of = [difference(*(rows[key] for key in keys)) for rows in setups]
                error = math.sqrt(sum(error**2 for _, error in of)) / len(of)
                means.append((statistics.mean(mean for mean, _ in of), error, statistics.mean(margins)))
    show(means)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
