"""The page of a diagnosis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpeft.compare.report import tables
from qpeft.compare.report.page import render
from qpeft.diagnostics.finding import Diagnosis, Finding
from qpeft.diagnostics.page.charts import charts_of
from qpeft.diagnostics.retraining import CircuitMatters
from qpeft.files import write_text


def write_page(diagnosis: Diagnosis, file: Path) -> Path:
    """Write `diagnosis` as one HTML file with embedded styles, script and charts. Equal diagnoses give equal bytes.

    Raises OSError where the file cannot be written.
    """
    context = {"diagnosis": diagnosis, "sections": [_section(finding) for finding in diagnosis.findings]}
    write_text(file, render("diagnosis.html.j2", context, "qpeft.diagnostics.page"))
    return file


def _section(finding: Finding) -> dict[str, Any]:
    trainings = finding.figures.get("trainings")
    return {
        "key": finding.key,
        "question": finding.question,
        "sentences": finding.sentences,
        "measures": finding.measures,
        "left_out": finding.left_out,
        "charts": charts_of(finding),
        "table": tables.controls(trainings.summary) if isinstance(trainings, CircuitMatters) else None,
    }
