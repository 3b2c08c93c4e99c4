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
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qpeft.files import write_text
from qpeft_lab.compare import charts
from qpeft_lab.compare.charts import kind_of
from qpeft_lab.compare.metrics import METRICS, TRAINABLE
from qpeft_lab.compare.rate_search import MOST_EXTENSIONS
from qpeft_lab.compare.rows import Row, cell_id, succeeded
from qpeft_lab.compare.stats import Difference, Stats, describe
from qpeft_lab.compare.summary import Result, Summary, load

MISSING = "\u2013"
_VERDICTS = {"better": "▲", "worse": "▼", "no difference shown": "≈", "preliminary": "…"}
_DECIMALS, _MOST_DECIMALS = 4, 6
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
    summary, folder = load(source), folder or source
    lines = pd.DataFrame(
        [line_of_method(found, summary) for found in summary.results], dtype=object
    )
    write_text(folder / "summary.csv", lines.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "report.html", page(summary))
    return summary


def page(summary: Summary) -> str:
    """The report. It is one file: styles and charts are embedded, and it loads nothing else."""
    context = {
        "summary": summary,
        "study": summary.study,
        "facts": _facts(summary),
        "kinds": list(dict.fromkeys(kind_of(found, summary) for found in summary.results)),
        "tables": {
            make.__name__: make(summary)
            for make in (results, published, learning_rates, measurements)
        },
        "charts": [
            chart
            for make in (charts.differences, charts.sizes, charts.curves)
            if (chart := make(summary))
        ],
        "extensions": MOST_EXTENSIONS,
        "failures": {cell_id(row): row for row in summary.failures},
        "machines": _machines(summary),
    }
    templates = files("qpeft_lab.compare") / "templates"
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    environment = Environment(
        loader=FileSystemLoader(str(templates)), trim_blocks=True, lstrip_blocks=True, **options
    )
    environment.filters["short"] = without_folders
    css = Markup((templates / "style.css").read_text("utf-8").strip())
    return environment.get_template("report.html.j2").render(
        css=css, version=version("qpeft"), **context
    )


def without_folders(text: str) -> str:
    """The text without the folders of a machine: `train.txt` instead of a path."""
    return _FOLDERS.sub("", text)


def results(summary: Summary) -> Table:
    """Every method with its size, quality, and the difference from what it is compared with; the
    best first.
    """
    lines, factor = [], summary.metric.factor
    for found in summary.ordered:
        rank, effective = found.mean("rank_numerical"), found.mean("rank_effective")
        lines.append(
            {
                "Method": _name(found, summary),
                "Trainable parameters": f"{found.method.trainable:,}",
                "Stored (kB)": decimal(found.mean("bytes_stored"), 1, 1e3),
                summary.metric.full_title: mean_sd(found.metric, factor=factor),
                "Compared with": summary.compared_with(found),
                "Difference [95 % interval]": interval(found.difference, factor),
                "Verdict": (
                    found.difference
                    and f"{_VERDICTS[found.difference.verdict]} {found.difference.verdict}"
                ),
                "Update rank (effective)": (
                    MISSING if effective is None else f"{decimal(rank, 1)} ({effective:.1f})"
                ),
                "Remarks": _remarks(found, summary),
            }
        )
    caption = (
        f"{summary.metric.title} on test data, mean ± standard deviation over seeds, the best first"
    )
    return Table.of("results", caption, lines)


def published(summary: Summary) -> Table:
    """Published values next to those measured, in the unit of the report."""
    lines = []
    for found, one in (
        (result, one) for result in summary.results for one in result.method.published
    ):
        metric, decimals = (
            one.metric or summary.study.metric,
            (0 if one.metric == TRAINABLE else _DECIMALS),
        )
        # the plan has counted the parameters
        stats = (
            describe({0: found.method.trainable}) if metric == TRAINABLE else found.stats(metric)
        )
        factor = METRICS[metric].factor
        lines.append(
            {
                "Method": found.label,
                "Metric": summary.shown(metric).full_title,
                "Published": f"{one.value:,.12g}",
                "Measured": mean_sd(stats, decimals, factor),
                "Measured - published": decimal(
                    stats and factor * stats.mean - one.value, decimals, sign="+"
                ),
                "Source": f"{one.source} ({one.note})" if one.note else one.source,
            }
        )
    return Table.of("published", "Published values, and those measured here", lines)


def learning_rates(summary: Summary) -> Table:
    """Every learning rate that was tried, with the lowest validation loss of its trial."""

    def trial(rate: float, row: Row | None, chosen: float | None) -> str:
        outcome = (
            "missing"
            if row is None
            else decimal(row.get("valid_loss"))
            if succeeded(row)
            else row["status"]
        )
        return f"{rate:g}: {outcome}{' ✓' if rate == chosen else ''}"

    lines = [
        {
            "Method": _name(found, summary),
            "Chosen": (
                found.lr
                and f"{found.lr:g}{f' ({found.lr_at_edge}est)' if found.lr_at_edge else ''}"
            ),
            **{
                f"Trial {n}": trial(*one, found.lr)
                for n, one in enumerate(found.trials.items(), start=1)
            },
        }
        for found in summary.ordered
        if found.trials
    ]
    return Table.of(
        "rates", "Learning rates tried, and the lowest validation loss of each (✓: chosen)", lines
    )


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


def interval(found: Difference | None, factor: float = 1.0) -> str:
    """`-0.0612 [-0.1032, -0.0192]`, with more decimals for a narrow interval, to show two digits of
    it.
    """
    if found is None:
        return MISSING
    if found.low is None or found.high is None:
        return f"{factor * found.mean:+.{_DECIMALS}f}"
    width = factor * (found.high - found.low)
    digits = 1 - math.floor(math.log10(width)) if width > 0 else _DECIMALS
    decimals = min(_MOST_DECIMALS, max(_DECIMALS, digits))
    mean, low, high = (
        f"{factor * value:+.{decimals}f}" for value in (found.mean, found.low, found.high)
    )
    return f"{mean} [{low}, {high}]"


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


def measurements(summary: Summary) -> Table:
    """Everything else that was measured."""
    others = [name for name in METRICS if name not in (summary.study.metric, TRAINABLE)]
    # by title: the name of a measurement, the factor to the unit that is shown, and decimals
    measured = {
        **{
            summary.shown(name).full_title: (name, METRICS[name].factor, _DECIMALS)
            for name in others
        },
        "Training (s, shared machine)": ("seconds", 1.0, 1),
        "Generator parameters": ("params_generator", 1.0, 0),
        "Step (ms)": ("step_ms", 1.0, 1),
        "Step ÷ the reference's": ("step_ratio", 1.0, 2),
        "Peak memory (MB)": ("peak_mem_bytes", 1e-6, 1),
    }
    lines = [
        {
            "Method": _name(found, summary),
            **{
                title: mean_sd(found.stats(one), n, factor)
                for title, (one, factor, n) in measured.items()
            },
        }
        for found in summary.ordered
    ]
    caption = (
        "Other scores on the test data; costs. Steps and memory were measured while nothing else of"
        " the study ran"
    )
    return Table.of("more", caption, lines)


def _machines(summary: Summary) -> str:
    """Hardware and versions of the rows."""
    rows = pd.DataFrame(summary.rows)
    names = [n for n in ("device", "qpeft", "torch", "transformers", "peft", "python") if n in rows]
    return "; ".join(
        f"{name} {', '.join(map(str, rows[name].dropna().unique()))}" for name in names
    )


def _name(found: Result, summary: Summary) -> str:
    """The label after the sign of its kind, indented unless it is a main method."""
    return f"{'↳ ' * (found.method.role != 'main')}{kind_of(found, summary).sign} {found.label}"


def _remarks(found: Result, summary: Summary) -> str:
    remarks = [found.lost, "" if found.has_improved else "did not improve on the base"]
    if found.method.at_size_of:
        remarks.append(f"has {summary.ratio(found):.0%} of the budget")
    return "; ".join(filter(None, remarks))


def line_of_method(found: Result, summary: Summary) -> dict[str, Any]:
    """A line of summary.csv."""
    method, stats = found.method, found.metric
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
    line |= {name: getattr(found, name) for name in ("lr", "lr_at_edge")}
    line |= {
        "ratio": summary.ratio(found) if method.at_size_of else None,
        "seeds_ok": len(found.successes),
        "statuses": " ".join(f"{seed}:{status}" for seed, status in found.statuses.items()),
        "metric.mean": stats and stats.mean,
        "metric.sd": stats and stats.sd,
        "metric.n": len(stats.values) if stats else 0,
    }
    line |= {
        f"delta.{f.name}": found.difference and getattr(found.difference, f.name)
        for f in fields(Difference)
    }
    rows = [*found.successes.values(), found.cost or {}]
    measured = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, float | int)
    )
    return line | {name: found.mean(name) for name in measured if name not in ("seed", "lr")}
