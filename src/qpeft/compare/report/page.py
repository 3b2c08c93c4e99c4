"""From a summary to `report.html` and `plots/*.svg`: what each section says, and the template that says it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.compare.analysis.records import read_method
from qpeft.compare.report import charts, measures, results, rules, words
from qpeft.compare.report.charts import Chart
from qpeft.compare.report.html import render
from qpeft.compare.report.marks import MARKS
from qpeft.compare.report.results import ordered
from qpeft.compare.study import UNTRAINED
from qpeft.files import write_text

if TYPE_CHECKING:
    from qpeft.compare.analysis.found import MethodSummary, Summary
    from qpeft.compare.rows import Row

_SECTIONS = {
    "answers": "Answers",
    "compared": "What is compared",
    "results": "Results",
    "pareto": "Quality against numbers",
    "blocks": "Equal budgets",
    "controls": "Controls",
    "convergence": "Convergence",
    "tuning": "Learning rates",
    "capacity": "Capacity",
    "costs": "Costs",
    "failures": "Failures",
    "limits": "Limits",
    "repeat": "Repeat it",
    "environment": "Environment",
}

_WITHOUT_MESSAGE = {"diverged": "a loss was not finite, or the last one above twice the first"}


def write_report(folder: Path, summary: Summary, all_rows: Mapping[str, Row]) -> Path:
    """Write `folder`/report.html and `folder`/plots/*.svg; returns the page. The same rows give the same bytes.

    The page is one file: styles, script and charts are in it, and it asks for nothing else.
    """
    rows = {method.key: read_method(summary.study, method, all_rows) for method in summary.study.methods}
    successes = {key: list(found.successes.values()) for key, found in rows.items()}
    pictures = {
        "forest": charts.differences(summary),
        "pareto": charts.against_numbers(summary),
        "control_forest": charts.control_differences(summary),
        "convergence": charts.convergence(summary),
        "trajectories": charts.each_method(summary),
        "layers": charts.layers(summary, successes),
        "ranks": charts.sora_ranks(summary, successes),
        "step_time": charts.against_time(summary),
    }
    present = [row for found in rows.values() for row in found.present]
    html = render("template.html.j2", {**_context(summary, present), **pictures})
    _write_plots(folder / "plots", [chart for found in pictures.values() for chart in found])
    write_text(folder / "report.html", html)
    return folder / "report.html"


def _write_plots(folder: Path, found: Sequence[Chart]) -> None:
    """Only the charts of this study: one of a method that is no more would mislead."""
    shutil.rmtree(folder, ignore_errors=True)
    for chart in found:
        write_text(folder / f"{chart.name}.svg", chart.document)


def _context(summary: Summary, rows: Sequence[Row]) -> dict[str, Any]:
    study = summary.study
    return {
        "study": study,
        "sections": _SECTIONS.items(),
        "n_rows": f"{len(rows):,}",
        "facts": rules.facts(summary),
        "rules": rules.rules(study),
        "unfinished": rules.unfinished(summary),
        "n_comparisons": summary.n_comparisons,
        "marks": MARKS,
        **_answers(summary),
        "methods": results.methods(summary),
        "results": results.results(summary),
        "further": results.further(summary),
        "forest_text": rules.forest(summary),
        "base_text": rules.base(summary),
        "blocks": [_block(summary, index) for index in range(len(summary.blocks))],
        "controls": results.controls(summary),
        "convergence_table": measures.speed(summary),
        "targets_text": rules.targets(summary),
        "seconds_text": rules.seconds(summary),
        "tuning": results.tuning(summary),
        "tuning_text": rules.tuning(summary),
        "edges": rules.edges(summary),
        "capacity": measures.capacity(summary),
        "capacity_text": rules.CAPACITY,
        "costs": measures.costs(summary),
        "costs_text": rules.costs(summary),
        "failures": [_failure(row) for row in summary.failures],
        "failures_text": rules.failures(summary),
        "missing": measures.missing(summary),
        "limits": summary.limits,
        "environment": measures.environment(summary, rows),
    }


def _answers(summary: Summary) -> dict[str, Any]:
    main = [method for method in ordered(summary) if method.role == "main"]
    verdicts = Counter(m.difference.verdict for m in main if m.difference is not None and m.method != UNTRAINED)
    return {
        "headlines": summary.headlines,
        "main_answers": [_answer(method, method.difference, summary) for method in main],
        "tally": [(verdict, verdicts[verdict]) for verdict in words.VERDICTS if verdicts[verdict]],
        "control_answers": [_answer(m, m.difference, summary) for m in ordered(summary) if m.role == "control"],
        "equals": [limit for limit in summary.limits if " performs as well as " in limit],
    }


def _answer(method: MethodSummary, found: Any, summary: Summary) -> dict[str, Any]:
    if found is None:
        verdict = "reference" if method.key == summary.study.reference else "no result"
        kind = "none"
    else:
        verdict, kind = f"{words.VERDICTS[found.verdict]} {found.verdict}", found.verdict.split()[0]
    mark = words.mark_of(method, summary.study)
    return {
        "key": method.key,
        "mark": mark,
        "verdict": verdict,
        "kind": kind,
        "sentence": summary.sentences[method.key],
    }


def _block(summary: Summary, index: int) -> dict[str, Any]:
    found = summary.blocks[index]
    answers = [_answer(summary[m.key], m.difference, summary) for m in found.members if m.key != found.of]
    return {"of": found.of, "answers": answers, "table": results.block(found, summary, index)}


def _failure(row: Row) -> Mapping[str, str]:
    message = ": ".join(part for part in (row.error_type, row.error_msg) if part)
    return {
        "name": row.cell_id,
        "status": row.status,
        "message": message or _WITHOUT_MESSAGE.get(row.status, "no message"),
        "traceback": row.traceback_tail or "",
    }
