"""What is made from a study's rows: `write_outputs(folder)` writes tables, charts and the report.

summary -> tables (Table: a pandas frame) -> results.csv, summary.csv, blocks.csv, summary.md, a terminal
        -> charts (matplotlib)            -> plots/*.svg
        -> page (Jinja templates)         -> report.html
"""
