"""Recompute the tables of the protocol from its rows with Python's standard library alone, and print their cells.

    python benchmarks/recompute_protocol.py results/equal-search-final/*.jsonl.xz    # or the files of another study

A line per cell, in the order of the files: of equal-search-final the tables `equal` and `pairs`, of
quantum-adapters-final `twins`, of margins and equal-search-epochs the table of that name.
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
TWINS = [("cua", "oft"), ("magnitude", "cua"), ("quic", "quic_random"), ("quanta", "mpo")]
SEARCHES = {"embedded-shakespeare.jsonl.xz": "embedded-numpy.jsonl.xz"}
PAIRS = [("qpa", "uni"), ("qpa", "lora"), *(("framed", other) for other in ("signs", "lie", "core", "uni"))]
Rows = dict[str, list[dict[str, Any]]]


def read(file: Path) -> Rows:
    """The rows by method, sorted by seed."""
    _, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
    found: Rows = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["role"] != "tuning" or "search" in file.parent.name:
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


def show(cells: list[tuple[float, float, float]], df: int = 9) -> None:
    """A line for each mean, standard error and margin, with the verdict among all of them."""
    differ = {(str(i), ""): {"p": tail(abs(mean) / error, df)} for i, (mean, error, _) in enumerate(cells)}
    inside: dict[tuple[str, str], dict[str, Any]] = {}
    for i, (mean, error, margin) in enumerate(cells):
        above = (margin - abs(mean)) / error
        inside[str(i), ""] = {"p": tail(above, df) / 2 if above > 0 else 1 - tail(-above, df) / 2}
    correct(differ)
    correct(inside)
    for (mean, error, _), one, other in zip(cells, differ.values(), inside.values(), strict=True):
        shown = ("better" if mean < 0 else "worse") if one["p_holm"] < 0.05 else "open"
        verdict, reach = "equivalent" if other["p_holm"] < 0.05 else shown, quantile(df) * error
        print(f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], {verdict}")


def main(files: list[Path]) -> None:
    setups, study = [read(file) for file in files], json.loads(lzma.decompress(files[0].read_bytes()).splitlines()[0])
    lora = {"margins": "lora_r8", "equal-search-epochs": "lora_1300", "quantum-adapters-final": "lora_10000"}
    margins = [margin(rows, lora.get(study["name"], "lora_5000")) for rows in setups]
    found = list(zip(setups, margins, strict=True))
    if study["name"] == "equal-search-final":
        names = [file.parents[1] / "equal-search" / SEARCHES.get(file.name, file.name) for file in files]
        keys = [[best(search, b, has) for has in (True, False)] for b in BUDGETS for search in map(read, names)]
        show([(*difference(s[one], s[other]), m) for (one, other), (s, m) in zip(keys, found * 4, strict=True)])
        show(means(setups, PAIRS, BUDGETS, margins))
    elif study["name"] == "quantum-adapters-final":
        show(means(setups, TWINS, (400, 1300, 10000), margins))
    else:
        asked = [(method["against"], method["key"]) for method in study["methods"] if method["against"]]
        asked = asked or [(f"framed_{n}", f"{other}_{n}") for other in ("uni", "xs", "tokens") for n in BUDGETS[:3]]
        df = len(study["seeds"]) - 1
        show([(*difference(s[one], s[other]), m) for one, other in asked for s, m in found], df)


def margin(rows: Rows, lora: str) -> float:
    return 0.02 * -difference(rows[lora], rows["none"] * len(rows[lora]))[0]


def means(setups: list[Rows], pairs: list[tuple[str, str]], budgets: tuple[int, ...], inside: list[float]) -> list[Any]:
    """The mean over the setups for each pair and budget that all of them have."""
    found = []
    for keys in ([f"{family}_{most}" for family in pair] for pair in pairs for most in budgets):
        if all(key in rows for rows in setups for key in keys):
            of = [difference(*(rows[key] for key in keys)) for rows in setups]
            error = math.sqrt(sum(error**2 for _, error in of)) / len(of)
            found.append((statistics.mean(mean for mean, _ in of), error, statistics.mean(inside)))
    return found


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
