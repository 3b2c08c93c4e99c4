"""What `compare` makes from a study's rows. The same rows give the same bytes.

report.html    one page that opens offline: the answer, a table, charts, what it does not show, learning rates
summary.csv    a line per method: means, intervals, verdicts, at full precision
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
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
from qpeft_lab.compare.rows import Row, cell_id, read_rows, succeeded
from qpeft_lab.compare.stats import Difference, Stats
from qpeft_lab.compare.study import read_study
from qpeft_lab.compare.summary import (
    SHARE,
    Reached,
    Result,
    Summary,
    published_of,
    summarise,
    unfinished,
)

MISSING = "\u2013"
_VERDICTS = {"better": "▲", "worse": "▼", "no difference shown": "≈", "preliminary": "…"}
_WIDE = 110  # columns of a terminal
_DECIMALS, _MOST_DECIMALS = 4, 6
_NUMBER = re.compile(r"[<>+-]? ?\d")
# the folders of a path of a machine, which are not shown
_FOLDERS = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2})?/(?:[^\s/'\"]+/)*(?=[^\s/])")
# name and caption of a table -> title of a column -> name of the measurement, unit, decimals
_MORE = {
    ("costs", "Costs, measured while nothing else of the study ran"): {
        "Training (s, shared machine)": ("seconds", 1, 1),
        "Generator parameters": ("params_generator", 1, 0),
        "Step (ms)": ("step_ms", 1, 1),
        "Step ÷ the reference's": ("step_ratio", 1, 2),
        "Peak memory (MB)": ("peak_mem_bytes", 1e6, 1),
    },
}


@dataclass(frozen=True)
class Table:
    """A table of texts; its first column names the rows."""

    name: str
    caption: str
    frame: pd.DataFrame

    @classmethod
    def of(cls, name: str, caption: str, items: Sequence[Any], columns: Mapping[str, Callable[[Any], str]]) -> Table:
        """A row for each item. `columns`: by title, the text of an item. Columns without any value are left out."""
        frame = pd.DataFrame({title: [text(item) for item in items] for title, text in columns.items()}, dtype=object)
        is_empty = frame.isin(["", MISSING]).all()
        is_empty.iloc[0] = False
        return cls(name, caption, frame.loc[:, ~is_empty])

    @property
    def columns(self) -> list[str]:
        return list(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        return self.frame.to_numpy().tolist()

    @property
    def numeric(self) -> set[str]:
        """The columns of numbers, which are aligned to the right."""
        known = {title: self.frame[title][~self.frame[title].isin(["", MISSING])] for title in self.columns[1:]}
        return {title for title, texts in known.items() if all(map(_NUMBER.match, texts))}


def write_outputs(folder: Path) -> Summary:
    """Write all files from the rows in `folder`. Raises InputError or CheckpointError where there is no valid study."""
    summary = summarise(read_study(folder), read_rows(folder))
    write_all(folder, summary)
    return summary


def write_all(folder: Path, summary: Summary) -> None:
    """Write all files into `folder`."""
    lines = pd.DataFrame([line_of_method(found, summary) for found in summary.results], dtype=object)
    write_text(folder / "summary.csv", lines.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "report.html", page(summary))


def page(summary: Summary) -> str:
    """The report. It is one file: styles and charts are embedded, and it loads nothing else."""
    context = {
        "summary": summary,
        "study": summary.study,
        "facts": _facts(summary),
        "kinds": list(dict.fromkeys(kind_of(found, summary) for found in summary.results)),
        "unfinished": unfinished(summary),
        "results": results(summary),
        "published": published(summary),
        "charts": [chart for make in (charts.differences, charts.sizes, charts.curves) if (chart := make(summary))],
        "rates": learning_rates(summary),
        "extensions": MOST_EXTENSIONS,
        "more": [table for table in _more(summary) if len(table.columns) > 1 and table.rows],
        "failures": [(cell_id(row), row["status"], failure(row)) for row in summary.failures],
        "machines": _machines(summary),
    }
    templates = files("qpeft_lab.compare") / "templates"
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(str(templates)), trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters["short"] = without_folders
    css = Markup((templates / "style.css").read_text("utf-8").strip())
    return environment.get_template("report.html.j2").render(css=css, version=version("qpeft"), **context)


def without_folders(text: str) -> str:
    """The text without the folders of a machine: `train.txt` instead of a path."""
    return _FOLDERS.sub("", text)


def results(summary: Summary) -> Table:
    """Every method with its size, quality, and the difference from what it is compared with; the best first."""
    ordered = [*summary.ordered, *(found for members in summary.blocks.values() for found in members[1:])]
    steps = f"Steps to {SHARE} % of the gain"
    columns: dict[str, Callable[[Result], str]] = {
        "Method": _name(summary),
        "Trainable parameters": lambda f: count(f.trainable),
        "Stored (kB)": lambda f: decimal(f.mean("bytes_stored"), 1, 1e3),
        summary.metric.full_title: lambda f: mean_sd(f.metric, factor=summary.metric.factor),
        "Compared with": lambda f: _compared(f, summary)[0],
        "Difference [95 % interval]": lambda f: interval(_compared(f, summary)[1], summary.metric.factor),
        "Verdict": lambda f: verdict(_compared(f, summary)[1]),
        steps: lambda f: reached(f.steps_to),
        "Update rank (effective)": _ranks,
        "Remarks": lambda f: _remarks(f, summary),
    }
    caption = f"{summary.metric.title} on test data, mean ± standard deviation over seeds, the best first"
    return Table.of("results", caption, ordered, columns)


def published(summary: Summary) -> Table:
    """Published values next to those measured."""

    def decimals(metric: str | None) -> int:
        return 0 if metric == TRAINABLE else _DECIMALS

    columns: dict[str, Callable[[Any], str]] = {
        "Method": lambda line: line[0].label,
        "Metric": lambda line: summary.shown(line[1].metric or summary.study.metric).full_title,
        "Published": lambda line: f"{line[1].value:,.12g}",
        "Measured": lambda line: mean_sd(line[2], decimals(line[1].metric)),
        "Measured - published": lambda line: (
            MISSING if line[2] is None else decimal(line[2].mean - line[1].value, decimals(line[1].metric), sign="+")
        ),
        "Source": lambda line: f"{line[1].source} ({line[1].note})" if line[1].note else line[1].source,
    }
    return Table.of("published", "Published values, and those measured here", published_of(summary), columns)


def learning_rates(summary: Summary) -> Table:
    """Every learning rate that was tried, with the lowest validation loss of its trial."""
    found = [found for found in _all(summary) if found.trials]
    n_trials = max((len(f.trials) for f in found), default=0)

    def trial(f: Result, place: int) -> str:
        if place >= len(f.trials):
            return ""
        rate, row = [*f.trials.items()][place]
        outcome = "missing" if row is None else decimal(row.get("valid_loss")) if succeeded(row) else row["status"]
        return f"{rate:g}: {outcome}{' ✓' if rate == f.lr else ''}"

    columns: dict[str, Callable[[Result], str]] = {
        "Method": _name(summary),
        "Chosen": lambda f: "" if f.lr is None else f"{f.lr:g}{f' ({f.lr_at_edge}est)' if f.lr_at_edge else ''}",
        **{f"Trial {i + 1}": lambda f, i=i: trial(f, i) for i in range(n_trials)},
    }
    return Table.of("rates", "Learning rates tried, and the lowest validation loss of each (✓: chosen)", found, columns)


def brief(table: Table, width: int) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table with what fits on a terminal of `width` columns."""
    left_out = ("Update", "Stored", "Steps to", *(("Compared", "Remarks") if width < _WIDE else ()))
    frame = table.frame[[title for title in table.columns if not title.startswith(left_out)]]
    if width < _WIDE:
        frame = frame.replace(r" \[.*", "", regex=True)
    titles = [title.removesuffix(" parameters").removesuffix(" [95 % interval]") for title in frame]
    return titles, frame.to_numpy().tolist()


def failure(row: Row) -> str:
    """Why a row is no success."""
    message = ": ".join(part for part in (row.get("error_type"), row.get("error")) if part)
    return message or "a loss was not finite, or the last one was more than twice the first"


def count(value: float | None) -> str:
    """`294,912`."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal(value: float | None, decimals: int = _DECIMALS, unit: float = 1.0, sign: str = "") -> str:
    """`3.0512`: the value divided by `unit`."""
    return MISSING if value is None else f"{value / unit:{sign},.{decimals}f}"


def mean_sd(stats: Stats | None, decimals: int = _DECIMALS, factor: float = 1.0) -> str:
    """`3.0512 ± 0.0041`; the mean alone for one seed."""
    if stats is None:
        return MISSING
    spread = "" if stats.sd is None else f" ± {factor * stats.sd:.{decimals}f}"
    return f"{factor * stats.mean:,.{decimals}f}{spread}"


def interval(found: Difference | None, factor: float = 1.0) -> str:
    """`-0.0612 [-0.1032, -0.0192]`, with more decimals for a narrow interval, to show two digits of it."""
    if found is None:
        return MISSING
    if found.low is None or found.high is None:
        return f"{factor * found.mean:+.{_DECIMALS}f}"
    width = factor * (found.high - found.low)
    digits = 1 - math.floor(math.log10(width)) if width > 0 else _DECIMALS
    decimals = min(_MOST_DECIMALS, max(_DECIMALS, digits))
    mean, low, high = (f"{factor * value:+.{decimals}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def verdict(found: Difference | None) -> str:
    """`▲ better`."""
    return "" if found is None else f"{_VERDICTS[found.verdict]} {found.verdict}"


def reached(found: Reached | None) -> str:
    """`40`; `40 (4/5)` if one of five seeds did not reach the target, `> 150 (2/5)` if most, `> 150` if all."""
    if found is None:
        return MISSING
    text = f"> {found.limit}" if found.median is None else f"{found.median:.0f}"
    n = len(found.steps)
    return f"{text} ({found.n_reached}/{n})" if 0 < found.n_reached < n else text


def _facts(summary: Summary) -> dict[str, str]:
    study = summary.study
    epochs = study.training.get("epochs")
    length = f"{study.training['steps']:,} steps" + (f" ({epochs:g} epochs)" if epochs else "")
    return {
        "Base": f"{Path(study.base.id).name}, {study.base.params_total:,} parameters",
        "Data": without_folders(study.data.id),
        "Metric": f"{summary.metric.full_title}, {'lower' if summary.lower_is_better else 'higher'} is better",
        "Reference": summary.reference.label,
        "Training": f"{length}, {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}",
    }


def _more(summary: Summary) -> list[Table]:
    """Everything else that was measured."""

    def of(name: str, caption: str, columns: Mapping[str, Callable[[Result], str]]) -> Table:
        return Table.of(name, caption, _all(summary), {"Method": _name(summary), **columns})

    def column(name: str, unit: float, digits: int) -> Callable[[Result], str]:
        return lambda found: mean_sd(found.stats(name), digits, 1 / unit)

    others = [name for name in METRICS if name not in (summary.study.metric, TRAINABLE)]
    scores = {summary.shown(name).full_title: column(name, 1 / METRICS[name].factor, 4) for name in others}
    return [
        of("scores", "Other scores on the test data", scores),
        *(of(*name, {title: column(*one) for title, one in columns.items()}) for name, columns in _MORE.items()),
    ]


def _machines(summary: Summary) -> str:
    """Hardware and versions of the rows."""
    rows = pd.DataFrame(summary.rows)
    names = [n for n in ("device", "qpeft", "torch", "transformers", "peft", "python") if n in rows]
    return "; ".join(f"{name} {', '.join(map(str, rows[name].dropna().unique()))}" for name in names)


def _all(summary: Summary) -> list[Result]:
    return [*summary.ordered, *(found for found in summary.results if found.role == "equal_budget")]


def _name(summary: Summary) -> Callable[[Result], str]:
    """The label after the sign of its kind, controls indented."""
    return lambda f: f"{'↳ ' if f.method.against else ''}{kind_of(f, summary).sign} {f.label}"


def _compared(found: Result, summary: Summary) -> tuple[str, Difference | None]:
    """What the table compares the method with: a control with its method, the others with the reference or budget."""
    if found.method.against:
        return summary[found.method.against].label, found.control
    if found.difference is None:
        return "the reference" if found.key == summary.study.reference else MISSING, None
    return summary[found.difference.to].label, found.difference


def _ranks(found: Result) -> str:
    """`8.0 (6.4)`: numerical and effective rank of the learned updates."""
    numerical, effective = found.mean("rank_numerical"), found.mean("rank_effective")
    return MISSING if effective is None else f"{decimal(numerical, 1)} ({decimal(effective, 1)})"


def _remarks(found: Result, summary: Summary) -> str:
    remarks = [found.lost, "" if found.has_improved else "did not improve on the base"]
    if found.method.block:
        remarks.append(f"has {summary.ratio(found):.0%} of the budget")
    return "; ".join(filter(None, remarks))


def line_of_method(found: Result, summary: Summary) -> dict[str, Any]:
    """A line of summary.csv."""
    method, stats = found.method, found.metric
    names = ("key", "label", "role", "against", "block", "method", "hash", "trainable")
    line: dict[str, Any] = {name: getattr(method, name) for name in names}
    line |= {name: getattr(found, name) for name in ("deployed", "lr", "lr_at_edge")}
    line |= {
        "ratio": summary.ratio(found) if method.block else None,
        "seeds_ok": len(found.successes),
        "statuses": " ".join(f"{seed}:{status}" for seed, status in found.statuses.items()),
        "metric.mean": stats and stats.mean,
        "metric.sd": stats and stats.sd,
        "metric.n": stats.n if stats else 0,
    }
    for name, difference in (("delta", found.difference), ("control", found.control)):
        line |= {f"{name}.{f.name}": difference and getattr(difference, f.name) for f in fields(Difference)}
    at = found.steps_to
    line |= {"steps_to": at and (f"> {at.limit}" if at.median is None else at.median), "reached": at and at.n_reached}
    rows = [*found.successes.values(), found.cost or {}]
    measured = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float | int))
    return line | {name: found.mean(name) for name in measured if name not in ("seed", "lr")}
