"""What `compare` makes from a study's rows. The same rows give the same bytes.

report.html    one page that opens offline: the answer, a table, charts, what it does not show, learning rates
summary.csv    a line per method: means, intervals, verdicts, at full precision
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qpeft.files import write_text
from qpeft_lab.compare import charts
from qpeft_lab.compare.charts import kind_of
from qpeft_lab.compare.metrics import METRICS, TRAINABLE
from qpeft_lab.compare.rate_search import MOST_EXTENSIONS
from qpeft_lab.compare.rows import Row, cell_id, succeeded
from qpeft_lab.compare.stats import BETTER, PRELIMINARY, WORSE, Difference, Stats, describe
from qpeft_lab.compare.study import Published
from qpeft_lab.compare.summary import Result, Summary, load

MISSING = "\u2013"
_SIGNS = {BETTER: "▲ ", WORSE: "▼ ", PRELIMINARY: "… "}  # of verdicts
_DECIMALS = 4
_MOST_DECIMALS = 6
_NUMBER = re.compile(r"[<>+-]? ?\d")
# the folders of a path of a machine, which are not shown
_FOLDERS = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2})?/(?:[^\s/'\"]+/)*(?=[^\s/])")


@dataclass(frozen=True)
class Table:
    """A table of texts; its first column names the rows."""

    name: str
    caption: str
    frame: pd.DataFrame

    @classmethod
    def of(cls, name: str, caption: str, lines: Sequence[Mapping[str, str]]) -> Table:
        """`lines`: the texts of each row by title. Columns without any value are left out."""
        frame = pd.DataFrame(lines, dtype=object).fillna("")
        return cls(name, caption, frame.loc[:, ~frame.isin(["", MISSING]).all()])

    @property
    def numeric(self) -> set[str]:
        """The columns of numbers, which are aligned to the right."""
        known = {
            title: texts[~texts.isin(["", MISSING])]
            for title, texts in self.frame.iloc[:, 1:].items()
        }
        return {str(title) for title, texts in known.items() if all(map(_NUMBER.match, texts))}


def write_outputs(source: Path, folder: Path | None = None) -> Summary:
    """Write all files from the rows in `source`, the folder of a study or a published file, to
    `folder` or there.

    Raises InputError or CheckpointError where there is no valid study.
    """
    summary = load(source)
    folder = folder or source
    write_text(folder / "summary.csv", summary_csv(summary))
    write_text(folder / "report.html", page(summary))
    return summary


def summary_csv(summary: Summary) -> str:
    """A line per method under a line of names, at full precision."""
    lines = [line_of_method(result, summary) for result in summary.results]
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")


def page(summary: Summary) -> str:
    """The report. It is one file: styles and charts are embedded, and it loads nothing else."""
    drawn = [make(summary) for make in (charts.differences, charts.sizes, charts.curves)]
    context = {
        "summary": summary,
        "study": summary.study,
        "facts": _facts(summary),
        "kinds": list(dict.fromkeys(kind_of(result, summary) for result in summary.results)),
        "tables": {
            "results": results(summary),
            "published": published(summary),
            "learning_rates": learning_rates(summary),
            "measurements": measurements(summary),
        },
        "charts": [chart for chart in drawn if chart is not None],
        "extensions": MOST_EXTENSIONS,
        "failures": {cell_id(row): row for row in summary.failures},
        "machines": _machines(summary),
        "version": version("qpeft"),
    }
    return rendered("report.html.j2", context)


def rendered(template: str, context: Mapping[str, Any]) -> str:
    """A page from one of our templates, with our style sheet in it."""
    templates = files("qpeft_lab.compare") / "templates"
    environment = Environment(
        loader=FileSystemLoader(str(templates)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = without_folders
    css = Markup((templates / "style.css").read_text("utf-8").strip())
    return environment.get_template(template).render(context, css=css)


def without_folders(text: str) -> str:
    """The text without the folders of a machine: `train.txt` instead of a path."""
    return _FOLDERS.sub("", text)


def results(summary: Summary) -> Table:
    """Every method with its size, quality, and the difference from what it is compared with; the
    best first.
    """
    factor = summary.metric.factor
    lines = []
    for result in summary.ordered:
        rank = result.mean("rank_numerical")
        effective = result.mean("rank_effective")
        verdict = result.difference and result.difference.verdict
        lines.append(
            {
                "Method": _name(result, summary),
                # next to the method, where a phone shows it without scrolling
                "Verdict": verdict and _SIGNS.get(verdict, "") + verdict,
                "Compared with": summary.compared_with(result),
                "Difference [95 % interval]": interval(result.difference, factor),
                summary.metric.full_title: mean_sd(result.metric, factor=factor),
                "Trainable parameters": f"{result.method.trainable:,}",
                "Stored (kB)": decimal(result.mean("bytes_stored"), 1, 1e3),
                "Update rank (effective)": (
                    MISSING if effective is None else f"{decimal(rank, 1)} ({effective:.1f})"
                ),
                "Remarks": _remarks(result, summary),
            }
        )
    caption = (
        f"{summary.metric.title} on test data, mean ± standard deviation over seeds, the best first"
    )
    return Table.of("results", caption, lines)


def published(summary: Summary) -> Table:
    """Published values next to those measured, in the unit of the report."""
    lines = []
    for result in summary.results:
        for value in result.method.published:
            lines.append(_line_of_published(value, result, summary))
    return Table.of("published", "Published values, and those measured here", lines)


def _line_of_published(value: Published, result: Result, summary: Summary) -> dict[str, str]:
    metric = value.metric or summary.study.metric
    if metric == TRAINABLE:  # the plan has counted the parameters
        decimals = 0
        stats = describe({0: result.method.trainable})
    else:
        decimals = _DECIMALS
        stats = result.stats(metric)
    factor = METRICS[metric].factor
    difference = None if stats is None else factor * stats.mean - value.value
    return {
        "Method": result.label,
        "Metric": summary.shown(metric).full_title,
        "Published": f"{value.value:,.12g}",
        "Measured": mean_sd(stats, decimals, factor),
        "Measured - published": decimal(difference, decimals, sign="+"),
        "Source": f"{value.source} ({value.note})" if value.note else value.source,
    }


def learning_rates(summary: Summary) -> Table:
    """Every learning rate that was tried, with the lowest validation loss of its trial."""

    lines = []
    for result in summary.ordered:
        if not result.trials:
            continue
        edge = f" ({result.lr_at_edge}est)" if result.lr_at_edge else ""
        line = {
            "Method": _name(result, summary),
            "Chosen": "" if result.lr is None else f"{result.lr:g}{edge}",
        }
        for number, (rate, row) in enumerate(result.trials.items(), start=1):
            mark = " ✓" if rate == result.lr else ""
            line[f"Trial {number}"] = f"{rate:g}: {_outcome(row)}{mark}"
        lines.append(line)
    return Table.of(
        "rates", "Learning rates tried, and the lowest validation loss of each (✓: chosen)", lines
    )


def _outcome(row: Row | None) -> str:
    """The validation loss of a trial, or why it has none."""
    if row is None:
        return "missing"
    return decimal(row.get("valid_loss")) if succeeded(row) else row["status"]


def decimal(
    value: float | None, decimals: int = _DECIMALS, unit: float = 1.0, sign: str = ""
) -> str:
    """`3.0512`: the value divided by `unit`."""
    return MISSING if value is None else f"{value / unit:{sign},.{decimals}f}"


def mean_sd(stats: Stats | None, decimals: int = _DECIMALS, factor: float = 1.0) -> str:
    """`3.0512 ± 0.0041`; the mean alone for one seed."""
    if stats is None:
        return MISSING
    spread = "" if stats.sd is None else f" ± {factor * stats.sd:.{decimals}f}"
    return f"{factor * stats.mean:,.{decimals}f}{spread}"


def interval(difference: Difference | None, factor: float = 1.0) -> str:
    """`-0.0612 [-0.1032, -0.0192]`, with more decimals for a narrow interval, to show two digits of
    it.
    """
    if difference is None:
        return MISSING
    low = difference.low
    high = difference.high
    if low is None or high is None:
        return f"{factor * difference.mean:+.{_DECIMALS}f}"
    width = factor * (high - low)
    digits = 1 - math.floor(math.log10(width)) if width > 0 else _DECIMALS
    decimals = min(_MOST_DECIMALS, max(_DECIMALS, digits))

    def shown(value: float) -> str:
        return f"{factor * value:+.{decimals}f}"

    return f"{shown(difference.mean)} [{shown(low)}, {shown(high)}]"


def _facts(summary: Summary) -> dict[str, str]:
    study = summary.study
    return {
        "Base": f"{Path(study.run.model).name}, {study.params_total:,} parameters",
        "Data": without_folders(study.run.data),
        "Metric": (
            f"{summary.metric.full_title}, {'lower' if summary.study.lower_is_better else 'higher'}"
            " is better"
        ),
        "Reference": summary.reference.label,
        "Training": (
            f"{study.run.steps:,} steps, {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}"
        ),
    }


class Column(NamedTuple):
    """A column of measurements: the name in the rows, and how the values are shown."""

    title: str
    name: str
    factor: float  # to the unit of the title
    decimals: int


_COSTS = [
    Column("Training (s, shared machine)", "seconds", 1.0, 1),
    Column("Generator parameters", "params_generator", 1.0, 0),
    Column("Step (ms)", "step_ms", 1.0, 1),
    Column("Step ÷ the reference's", "step_ratio", 1.0, 2),
    Column("Peak memory (MB)", "peak_mem_bytes", 1e-6, 1),
]


def measurements(summary: Summary) -> Table:
    """Everything else that was measured."""
    others = [name for name in METRICS if name not in (summary.study.metric, TRAINABLE)]
    columns = [
        Column(summary.shown(name).full_title, name, METRICS[name].factor, _DECIMALS)
        for name in others
    ]
    columns += _COSTS
    lines = []
    for result in summary.ordered:
        line = {"Method": _name(result, summary)}
        for column in columns:
            stats = result.stats(column.name)
            line[column.title] = mean_sd(stats, column.decimals, column.factor)
        lines.append(line)
    caption = "Other scores on the test data; costs"
    if any(result.cost is not None for result in summary.results):
        caption += ". Steps and memory were measured while nothing else of the study ran"
    return Table.of("more", caption, lines)


def _machines(summary: Summary) -> str:
    """Hardware and versions of the rows."""
    rows = pd.DataFrame(summary.rows)
    names = [n for n in ("device", "qpeft", "torch", "transformers", "peft", "python") if n in rows]
    return "; ".join(
        f"{name} {', '.join(map(str, rows[name].dropna().unique()))}" for name in names
    )


def _name(result: Result, summary: Summary) -> str:
    """The label after the sign of its kind, indented unless it is a main method."""
    indent = "" if result.method.role == "main" else "↳ "
    return f"{indent}{kind_of(result, summary).sign} {result.label}"


def _remarks(result: Result, summary: Summary) -> str:
    remarks = [result.lost, "" if result.has_improved else "did not improve on the base"]
    if result.method.at_size_of:
        remarks.append(f"has {summary.ratio(result):.0%} of the budget")
    return "; ".join(filter(None, remarks))


def line_of_method(result: Result, summary: Summary) -> dict[str, Any]:
    """A line of summary.csv."""
    method = result.method
    stats = result.metric
    names = (
        "key",
        "label",
        "role",
        "against",
        "at_size_of",
        "method",
        "hash",
        "trainable",
        "deployed",
    )
    line: dict[str, Any] = {name: getattr(method, name) for name in names}
    line |= {name: getattr(result, name) for name in ("lr", "lr_at_edge")}
    line |= {
        "ratio": summary.ratio(result) if method.at_size_of else None,
        "seeds_ok": len(result.successes),
        "statuses": " ".join(f"{seed}:{status}" for seed, status in result.statuses.items()),
        "metric.mean": stats and stats.mean,
        "metric.sd": stats and stats.sd,
        "metric.n": len(stats.values) if stats else 0,
    }
    line |= {
        f"delta.{f.name}": result.difference and getattr(result.difference, f.name)
        for f in fields(Difference)
    }
    rows = [*result.successes.values(), result.cost or {}]
    measured = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, float | int)
    )
    return line | {name: result.mean(name) for name in measured if name not in ("seed", "lr")}
