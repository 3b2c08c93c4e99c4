"""One HTML file that opens offline: `write_report(folder, summary)`.

    summary -> context (what each section says)  -> template.html.j2 -> report.html
            -> tables (cells as text, with what sorts them)
            -> pareto, forest, trajectories, layers -> canvas (SVG) -> plots/*.svg, and inlined

The page is whole without JavaScript; `table.js` adds sorting and filtering. Equal rows give an equal file.
"""

from qpeft.studies.comparison.report.page import write_report

__all__ = ["write_report"]
