"""One HTML file that opens offline: `write_report(folder, summary)`.

    summary -> rules (the sentences), results and measures (the tables)   -> page, template.html.j2 -> report.html
            -> charts: forest, pareto, trajectories, histogram -> canvas   -> plots/*.svg, and inlined in the page

The page is whole without JavaScript; `table.js` adds sorting and filtering. Equal rows give an equal file.
"""

from qpeft.compare.report.page import write_report

__all__ = ["write_report"]
