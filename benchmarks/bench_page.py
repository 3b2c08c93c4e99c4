"""Puts the tables of `results/bench.json` into `docs/benchmarks.md`, between the comments that name them.

python benchmarks/bench.py --json benchmarks/results/bench.json
python benchmarks/bench_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qpeft.files import write_text
from speed.machine import Machine
from speed.row import Row
from speed.table import markdown

RESULTS = Path(__file__).parent / "results" / "bench.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def filled(text: str, groups: dict[str, Any]) -> str:
    """The page's text with the groups' tables; KeyError for a table that was not measured."""
    return re.sub(
        r"(?m)^(% table: (\w+)\n).*?^(% end\n)",
        lambda found: f"{found[1]}\n{_table(groups[found[2]])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def _table(group: dict[str, Any]) -> str:
    rows = [Row(**{**row, "quartiles": row["quartiles"] and tuple(row["quartiles"])}) for row in group["rows"]]
    return f"{markdown(rows)}\n{Machine(**group['roofline'])}\n"


def main() -> None:
    groups = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), groups))


if __name__ == "__main__":
    main()
