"""HTML pages from templates: the report of a study, and what other pages of qpeft share with it."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qpeft.compare.analysis.limits import unfinished
from qpeft.compare.report import charts, tables, text
from qpeft.compare.report.format import KINDS
from qpeft.files import write_text

if TYPE_CHECKING:
    from qpeft.compare.analysis.types import Summary

_HERE = "qpeft.compare.report"
_SECTIONS = {
    "answers": "Answers",
    "compared": "What is compared",
    "results": "Results",
    "blocks": "Equal budgets",
    "controls": "Controls",
    "convergence": "Convergence",
    "tuning": "Learning rates",
    "capacity": "Capacity",
    "costs": "Costs",
    "failures": "Failures",
    "limits": "Limits",
    "repeat": "Reproduce",
    "environment": "Environment",
}


def write_report(folder: Path, summary: Summary) -> Path:
    """Write `folder`/report.html and `folder`/plots/*.svg; returns the page.

    The page is one file: styles, script and charts are embedded, and it loads nothing else. It is complete without
    JavaScript, which adds sorting and filtering.
    """
    made = charts.every(summary)
    blocks = [
        (
            block.of,
            [text.answer(summary[m.key], m.difference, summary) for m in block.members if m.key != block.of],
            tables.block(block, summary),
        )
        for block in summary.blocks
    ]
    context = {
        "summary": summary,
        "study": summary.study,
        "text": text,
        "sections": _SECTIONS.items(),
        "kinds": KINDS,
        "unfinished": unfinished(summary),
        "blocks": blocks,
        "tables": tables.every(summary),
        "charts": made,
    }
    html = render("report.html.j2", context)
    if (folder / "plots").is_symlink():
        (folder / "plots").unlink()  # a link in a folder from someone else is not followed
    shutil.rmtree(folder / "plots", ignore_errors=True)  # charts of an older version of the study
    for chart in (chart for found in made.values() for chart in found):
        write_text(folder / "plots" / f"{chart.name}.svg", chart.svg)
    write_text(folder / "report.html", html)
    return folder / "report.html"


def render(template: str, context: dict[str, Any], package: str = _HERE) -> str:
    """The page of `template` in `package`, which may extend `layout.html.j2` and import `parts.html.j2`."""
    places = [str(files(name)) for name in dict.fromkeys((package, _HERE))]
    environment = Environment(
        loader=FileSystemLoader(places),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, script = (Markup((files(_HERE) / name).read_text("utf-8").strip()) for name in ("style.css", "table.js"))
    return environment.get_template(template).render(css=css, script=script, version=version("qpeft"), **context)
