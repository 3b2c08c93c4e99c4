"""Everything that `compare` makes from a study's rows, as files. The same rows give the same bytes.

    results.jsonl   every row                  summary.csv   a line per method: means, intervals, verdicts
    results.csv     a line per row             blocks.csv    a line per member of an equal-budget block
    summary.md      the results to read        report.html   the report, and its charts in plots/
    published.csv   a line per published value, if the study has any

CSV files hold values at full precision under dotted names. An empty field is a value that is missing; the reason is in
the column `null_reasons`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qpeft.compare.analysis.records import flatten
from qpeft.compare.analysis.statistics import Difference, Stats
from qpeft.compare.analysis.summary import summarise
from qpeft.compare.analysis.targets import SHARES
from qpeft.compare.analysis.types import MethodSummary, Reached, Summary
from qpeft.compare.report import tables
from qpeft.compare.report.page import write_report
from qpeft.compare.report.table import markdown_text, to_csv
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import Row, line_of, read_rows
from qpeft.files import write_text

_ROW = ("cell_id", "method", "label", "role", "seed", "status")
_METHOD = ("key", "label", "role", "against", "method", "hash", "trainable", "deployed", "generator", "bytes_stored")
_METHOD += ("lr", "lr_at_edge", "rank")
_DIFFERENCE = ("to", "mean", "low", "high", "n", "same_sign", "p", "p_holm", "verdict_alone", "verdict")
_MEASURED = (
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
_OF_LABELS = ("quality.test_mcc", "quality.test_f1", "quality.test_pearson", "quality.test_spearman")


def write_outputs(folder: Path) -> Summary:
    """Write all files from the rows in `folder`. Raises InputError or CheckpointError where there is no valid study."""
    summary = summarise(read_study(folder), read_rows(folder))
    write_tables(folder, summary)
    write_report(folder, summary)
    return summary


def write_tables(folder: Path, summary: Summary) -> None:
    """Write the tables into `folder`."""
    rows = summary.present_rows
    write_text(folder / "results.jsonl", "".join(map(line_of, rows)))
    write_text(folder / "results.csv", to_csv(map(_row, rows), _ROW))
    write_text(folder / "summary.csv", to_csv(map(_method, summary.methods), ("key",)))
    write_text(folder / "blocks.csv", to_csv(_members(summary), ("of", "budget", "key")))
    write_text(folder / "summary.md", markdown(summary))
    if published := list(_published(summary)):
        write_text(folder / "published.csv", to_csv(published, ("key", "metric")))
    else:
        (folder / "published.csv").unlink(missing_ok=True)


def markdown(summary: Summary) -> str:
    """`summary.md`: answers, the tables of the report, failures, limits, the command that repeats the study."""
    study = summary.study
    direction = "lower" if summary.lower_is_better else "higher"
    found = tables.every(summary)
    shown = [
        found[name]
        for name in ("methods", "results", "front", "front_stored", "published", "other_metrics", "controls", "speed")
    ]
    shown += [*(tables.block(block, summary) for block in summary.blocks), found["costs"], found["capacity"]]
    parts = [
        f"# {markdown_text(study.title)}",
        markdown_text(study.question),
        "## Answers",
        *(f"**{markdown_text(text)}**" for text in summary.headlines[:1]),
        _list([*summary.headlines[1:], *summary.sentences.values()]),
        "## Tables",
        f"Metric: {study.metric}, {direction} is better. Differences are paired by seed: method minus "
        f"{study.reference}, or control minus method. A dash is a value that was not measured; reasons are in "
        "summary.csv.",
    ]
    for table in (table for table in shown if table.rows):
        parts += [f"### {table.caption}", table.markdown()]
    if summary.failures:
        failures = [f"`{row.cell_id}`: {row.status}, {row.error_msg or 'no message'}" for row in summary.failures]
        parts += ["## Failures", _list(failures)]
    parts += ["## Limits", _list(summary.limits), "## Reproduce", f"    {study.command}"]
    return "\n\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def _row(row: Row) -> dict[str, Any]:
    """A row with dotted names, without its lists (curves, texts), which results.jsonl has."""
    flat = flatten({key: value for key, value in row.to_json().items() if key != "null_reasons"})
    kept = {name: value for name, value in flat.items() if not isinstance(value, list)}
    return kept | {"null_reasons": _reasons(row.null_reasons)}


def _method(method: MethodSummary) -> dict[str, Any]:
    """The scalar values of a method."""
    line: dict[str, Any] = {name: getattr(method, name) for name in _METHOD}
    line |= {"seeds_ok": method.ok, "seeds_planned": len(method.statuses)}
    line |= _stats("metric", method.metric)
    line |= _difference("delta", method.difference) | _difference("control", method.difference_to_target)
    for name in (*_MEASURED, *(name for name in _OF_LABELS if name in method.measurements)):
        line |= _stats(name, method.measurements.get(name))
    line |= flatten(method.cost.to_json(), "cost.")
    line |= {"hardware": method.hardware}
    for share in SHARES:
        line |= _reached(f"steps_to.{share}", method.steps_to.get(share))
        line |= _reached(f"seconds_to.{share}", method.seconds_to.get(share))
    return line | {
        "statuses": " ".join(f"{seed}:{status}" for seed, status in method.statuses.items()),
        "flags": "; ".join(method.flags),
        "null_reasons": _reasons(method.null_reasons),
    }


def _members(summary: Summary) -> Iterator[dict[str, Any]]:
    for block in summary.blocks:
        for member in block.members:
            line = {name: getattr(member, name) for name in ("key", "trainable", "ratio", "over_budget", "rank")}
            metric = _stats("metric", summary[member.key].metric)
            yield {"of": block.of, "budget": block.budget} | line | metric | _difference("delta", member.difference)


def _published(summary: Summary) -> Iterator[dict[str, Any]]:
    for method in summary.methods:
        for one in method.published:
            line = {"key": method.key, "metric": one.metric, "unit": summary.shown(one.metric).unit}
            line |= {"published": one.value} | _stats("measured", one.measured) | {"difference": one.difference}
            yield line | {"source": one.source, "note": one.note}


def _stats(name: str, stats: Stats | None) -> dict[str, Any]:
    mean, sd, n = (None, None, 0) if stats is None else (stats.mean, stats.sd, stats.n)
    return {f"{name}.mean": mean, f"{name}.sd": sd, f"{name}.n": n}


def _difference(name: str, found: Difference | None) -> dict[str, Any]:
    return {f"{name}.{field}": None if found is None else getattr(found, field) for field in _DIFFERENCE}


def _reached(name: str, found: Reached | None) -> dict[str, Any]:
    """The median, or "> T" where too few seeds reached the target for one, and how many did."""
    middle = found and (f"> {found.limit:g}" if found.median is None else found.median)
    return {f"{name}.median": middle, f"{name}.reached": found and found.n_reached}


def _reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
