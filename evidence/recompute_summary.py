"""Recompute a study's statistics from its rows with Python's standard library alone, and compare
with its tables.

    python evidence/recompute_summary.py DIR

Reads DIR/study.json and DIR/rows.jsonl; means, standard deviations, paired differences, t
intervals, p values and verdicts after Holm's correction must agree with DIR/summary.csv. The script
does not use qpeft: Student's distribution is integrated numerically, and Holm's correction is
applied step by step. Exit code 1: there are disagreements, one per line.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELATIVE = 1e-9
ABSOLUTE = 1e-12
FAILED = {"failed", "diverged"}


@dataclass
class Result:
    """The metric of a method by seed, and the statuses of its rows."""

    values: dict[int, float]
    statuses: list[str]

    @property
    def lost(self) -> bool:
        return any(status in FAILED for status in self.statuses)


def read_results(folder: Path, study: dict[str, Any]) -> dict[str, Result]:
    """The metric of every method by seed."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("study", "method", "hash", "name")  # a later line of a cell replaces an earlier one
    rows = {"/".join(row[name] for name in names): row for row in map(json.loads, lines)}
    return {method["key"]: read_result(rows, study, method) for method in study["methods"]}


def read_result(all_rows: dict[str, dict], study: dict[str, Any], method: dict[str, Any]) -> Result:
    cells = {
        seed: f"{study['name']}/{method['key']}/{method['hash']}/seed{seed}"
        for seed in study["seeds"]
    }
    rows = {seed: all_rows[cell_id] for seed, cell_id in cells.items() if cell_id in all_rows}
    if (
        not method["rates"] and rows and study["run"]["task"] == "causal-lm"
    ):  # untrained: one evaluation for all seeds
        rows = dict.fromkeys(cells, next(iter(rows.values())))
    metric = {
        seed: row.get(study["metric"]) for seed, row in rows.items() if row["status"] == "success"
    }
    statuses = [rows[seed]["status"] if seed in rows else "missing" for seed in cells]
    return Result({seed: value for seed, value in metric.items() if value is not None}, statuses)


def tail(t: float, df: int) -> float:
    """P(|T| > t) for Student's T: with x = sqrt(df) cot(a) it is an integral of sin(a)**(df - 1)
    from 0, by Simpson.
    """
    constant = 2 * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    n = 2000
    end = math.atan2(math.sqrt(df), t)
    heights = [math.sin(end * i / n) ** (df - 1) for i in range(n + 1)]
    weights = [1, *(4 if i % 2 else 2 for i in range(1, n)), 1]
    return constant * end / n / 3 * math.fsum(w * h for w, h in zip(weights, heights, strict=True))


@functools.cache
def quantile(df: int) -> float:
    """The t with P(|T| > t) = 0.05, by bisection."""
    low = 0.0
    high = 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 0.05 else (low, middle)
    return high


def compare(method: Result, other: Result, lower_is_better: bool) -> dict[str, Any] | None:
    """The paired difference with its interval, its p value and the verdict of its interval."""
    seeds = [seed for seed in method.values if seed in other.values]
    if not seeds:
        return None
    differences = [method.values[seed] - other.values[seed] for seed in seeds]
    n = len(differences)
    mean = statistics.mean(differences)
    found = {"mean": mean, "n": n, "low": None, "high": None, "p": None, "p_holm": None}
    if n > 1:
        error = statistics.stdev(differences) / math.sqrt(n)
        half = quantile(n - 1) * error
        found |= {"low": mean - half, "high": mean + half}
    if n < 3:
        return found | {"verdict": "preliminary"}
    has_spread = statistics.stdev(differences) > 1e-12 * abs(mean)  # a t test needs variation
    found["p"] = tail(abs(mean) / error, n - 1) if has_spread else 1.0
    if found["low"] <= 0 <= found["high"]:
        return found | {"verdict": "no difference shown"}
    return found | {"verdict": "better" if (mean < 0) == lower_is_better else "worse"}


def family(
    study: dict[str, Any], results: dict[str, Result]
) -> dict[tuple[str, str], dict[str, Any]]:
    """All comparisons of the study with their final verdicts."""
    pairs = [
        (m["key"], m["against"] or m["at_size_of"] or study["reference"]) for m in study["methods"]
    ]
    lower = study["metric"] == "test_loss"
    asked = {
        pair: compare(results[pair[0]], results[pair[1]], lower)
        for pair in pairs
        if pair[0] != pair[1]
    }
    found = {pair: comparison for pair, comparison in asked.items() if comparison is not None}
    correct(found)
    for (key, to), comparison in found.items():
        verdict = comparison["verdict"]
        if comparison["p_holm"] is not None and comparison["p_holm"] >= 0.05:
            verdict = "no difference shown"
        if (verdict == "better" and results[key].lost) or (verdict == "worse" and results[to].lost):
            verdict = "no difference shown"  # the remaining seeds are a biased selection
        comparison["verdict"] = verdict
    return found


def correct(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Holm: the smallest p times the number of comparisons, the next times one less, ..., monotone,
    at most 1.
    """
    tested = [comparison for comparison in found.values() if comparison["p"] is not None]
    largest = 0.0
    for place, comparison in enumerate(sorted(tested, key=lambda comparison: comparison["p"])):
        largest = max(largest, min(1.0, (len(tested) - place) * comparison["p"]))
        comparison["p_holm"] = largest


def expected_summary(
    study: dict[str, Any], results: dict[str, Result]
) -> dict[str, dict[str, Any]]:
    """summary.csv's statistical columns by method."""
    found = {key: comparison for (key, _), comparison in family(study, results).items()}
    sizes = {m["key"]: m["trainable"] for m in study["methods"]}
    lines = {}
    for method in study["methods"]:
        key = method["key"]
        lines[key] = metric(results[key]) | columns(found.get(key))
        lines[key] |= {
            "ratio": sizes[key] / sizes[method["at_size_of"]] if method["at_size_of"] else None
        }
        lines[key] |= {"seeds_ok": results[key].statuses.count("success")}
    return lines


def metric(result: Result) -> dict[str, Any]:
    values = list(result.values.values())
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {
        "metric.mean": statistics.mean(values) if values else None,
        "metric.sd": sd,
        "metric.n": len(values),
    }


def columns(comparison: dict[str, Any] | None) -> dict[str, Any]:
    fields = ("mean", "low", "high", "n", "p", "p_holm", "verdict")
    return {f"delta.{field}": None if comparison is None else comparison[field] for field in fields}


def disagreements(path: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each field of the table at `path` that differs from the rows."""
    lines = {
        line["key"]: line for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    }
    if lines.keys() != expected.keys():
        return [f"{path.name}: lines {sorted(lines)}, the study has {sorted(expected)}"]
    return [
        f"{path.name}: {name} {field} is {lines[name][field]!r}, the rows give {value!r}"
        for name, fields in expected.items()
        for field, value in fields.items()
        if not agrees(lines[name][field], value)
    ]


def agrees(printed: str, value: Any) -> bool:
    if value is None or isinstance(value, str):
        return printed == (value or "")
    try:
        return math.isclose(float(printed), value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except ValueError:
        return False


def main(folder: Path) -> int:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    results = read_results(folder, study)
    found = disagreements(folder / "summary.csv", expected_summary(study, results))
    print(
        "\n".join(found) if found else f"summary.csv agrees with the rows of {len(results)} methods"
    )
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python evidence/recompute_summary.py DIR")
    sys.exit(main(Path(sys.argv[1])))
