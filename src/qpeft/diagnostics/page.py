"""The page of a diagnosis: one HTML file that opens offline, in the style of the report of `qpeft compare`."""

from __future__ import annotations

from pathlib import Path

from qpeft.compare.report import tables
from qpeft.compare.report.page import render
from qpeft.diagnostics.charts import charts_of
from qpeft.diagnostics.finding import Diagnosis
from qpeft.files import output_file, write_text


def write_page(diagnosis: Diagnosis, file: Path) -> Path:
    """Write `diagnosis` as one HTML file with embedded styles, script and charts. Equal diagnoses give equal bytes.

    Raises ConfigError if something other than a file is there, OSError where the file cannot be written.
    """
    runs = diagnosis.training_runs
    context = {
        "diagnosis": diagnosis,
        "charts_of": charts_of,
        "controls": None if runs is None else tables.controls(runs.summary),
    }
    write_text(output_file(file), render("diagnosis.html.j2", context, "qpeft.diagnostics"))
    return file
