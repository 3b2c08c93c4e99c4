"""A study's rows and summary as plain files: JSON lines and CSV at full precision, Markdown to read.

    results.jsonl   every row as it is              summary.csv   a line per method: means, intervals, verdicts
    results.csv     a line per row, dotted names    blocks.csv    a line per member of an equal-budget block
    summary.md      what people read first

A file depends on the rows and nothing else, so the same rows give the same bytes. An empty field of a CSV is a figure
that is not there; why is told in its column `null_reasons`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qpeft.compare.analysis.found import MethodSummary, Reached, Summary
from qpeft.compare.analysis.markdown import markdown
from qpeft.compare.analysis.records import flatten, read_method
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.compare.rows import Row, line_of
from qpeft.files import write_text

_FIRST = ("cell_id", "method", "label", "role", "seed", "status")

_FIGURES = (
    "quality.test_loss",
    "quality.test_ppl",
    "quality.bits_per_byte",
    "quality.test_accuracy",
    "quality.bleu",
    "quality.rougeL",
    "convergence.auc_per_token",
    "capacity.effective_rank",
    "capacity.linear_share",
)


def write_tables(folder: Path, summary: Summary, all_rows: Mapping[str, Row]) -> None:
    """Write the five files into `folder`, each atomically."""
    rows = list(_present_rows(summary, all_rows))
    write_text(folder / "results.jsonl", "".join(line_of(row) for row in rows))
    write_text(folder / "results.csv", _csv(_FIRST, map(_flat, rows)))
    write_text(folder / "summary.csv", _csv(("key",), map(_method_line, summary.methods)))
    write_text(folder / "blocks.csv", _csv(("of", "budget", "key"), _block_lines(summary)))
    write_text(folder / "summary.md", markdown(summary))


def _present_rows(summary: Summary, rows: Mapping[str, Row]) -> Iterable[Row]:
    for method in summary.study.methods:
        yield from read_method(summary.study, method, rows).present


def _flat(row: Row) -> dict[str, Any]:
    """A row with dotted names, without its lists (curves, texts), which results.jsonl has."""
    flat = flatten({key: value for key, value in row.to_json().items() if key != "null_reasons"})
    kept = {name: value for name, value in flat.items() if not isinstance(value, list)}
    return kept | {"null_reasons": _reasons(row.null_reasons)}


def _method_line(method: MethodSummary) -> dict[str, Any]:
    """Everything of a method that is one number or one word."""
    plain = ("key", "label", "role", "against", "method", "hash", "trainable", "deployed", "generator", "bytes_stored")
    line = {name: getattr(method, name) for name in (*plain, "lr", "lr_at_edge", "rank")}
    line |= {"seeds_ok": method.ok, "seeds_planned": len(method.statuses)}
    line |= _stats("metric", method.metric)
    line |= _difference("delta", method.difference) | _difference("control", method.difference_to_target)
    for name in _FIGURES:
        line |= _stats(name, method.figures.get(name))
    line |= {f"cost.{name}": value for name, value in flatten(method.cost).items() if not isinstance(value, list)}
    line |= {"hardware": method.hardware}
    for target in ("reference", "half_of_full", "ninety_of_full"):
        line[f"steps_to.{target}"] = reached(method.steps_to.get(target))
        line[f"seconds_to.{target}"] = reached(method.seconds_to.get(target))
    statuses = " ".join(f"{seed}:{status}" for seed, status in method.statuses.items())
    return line | {
        "statuses": statuses,
        "flags": "; ".join(method.flags),
        "null_reasons": _reasons(method.null_reasons),
    }


def reached(found: Reached | None) -> str | float | None:
    """The mean, or "> T" where a seed did not get there."""
    if found is None or found.mean is not None:
        return None if found is None else found.mean
    return f"> {found.limit:g}"


def _block_lines(summary: Summary) -> Iterable[dict[str, Any]]:
    for block in summary.blocks:
        for member in block.members:
            line = {name: getattr(member, name) for name in ("key", "trainable", "ratio", "over_budget", "rank")}
            metric = _stats("metric", summary[member.key].metric)
            yield {"of": block.of, "budget": block.budget} | line | metric | _difference("delta", member.difference)


def _stats(name: str, stats: Stats | None) -> dict[str, Any]:
    if stats is None:
        return {f"{name}.mean": None, f"{name}.sd": None, f"{name}.n": 0}
    return {f"{name}.mean": stats.mean, f"{name}.sd": stats.sd, f"{name}.n": stats.n}


def _difference(name: str, found: Difference | None) -> dict[str, Any]:
    fields = ("to", "mean", "low", "high", "n", "same_sign", "p", "p_holm", "verdict_alone", "verdict")
    return {f"{name}.{field}": None if found is None else getattr(found, field) for field in fields}


def _reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))


def _csv(first: Iterable[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """One header for all lines: first those in `first`, then part by part as they come up."""
    found = list(lines)
    names = list(dict.fromkeys([*first, *(name for line in found for name in line)]))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    names.sort(key=lambda name: groups.index(name.partition(".")[0]))  # a part's names side by side
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()
