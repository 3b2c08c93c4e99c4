"""The speed of qpeft compared with other programs: one table of ratios, and the limits of the machine.

    python benchmarks/bench.py                              # `make bench`: many minutes
    python benchmarks/bench.py --only circuits columns      # some groups
    python benchmarks/bench.py --quick                      # seconds, to see that it runs; the results mean nothing
    python benchmarks/bench.py --json benchmarks/results/bench.json
    python benchmarks/bench.py --page                       # write the tables of results/bench.json to the docs page

One thread. A ratio is the other's time over qpeft's: above 1, qpeft is faster. In each round every program of a row
runs once, in one process; times are processor times, which other load hardly affects, and medians. The results of a
program are compared with qpeft's before it is timed; a program that disagrees is refused, and the exit code is then 1.
After Ctrl-C the completed measurements are shown and saved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

# other programs read these when they are imported, which the groups do late
os.environ.update(OMP_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch

from qpeft.files import write_json, write_text
from speed.machine import Machine
from speed.measure import Row
from speed.table import markdown

GROUPS = ("circuits", "large_circuits", "columns", "tokens", "steps", "backends")
RESULTS = Path(__file__).parent / "results" / "bench.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


@dataclass
class Group:
    """Rows of one module of `speed`, and the limits of the machine just before."""

    title: str
    roofline: Machine
    rows: list[Row] = field(default_factory=list)


def run(names: list[str], quick: bool, output: Path | None) -> bool:
    """Measure the groups; show and save also the rows of an interrupted group. False if a program was refused."""
    refused = False
    for name in names:
        module = import_module(f"speed.{name}")
        group = Group(module.TITLE, Machine.measure(quick))
        try:
            for row in module.rows(group.roofline, quick):
                group.rows.append(row)
                print(f"{name}: {row.what} / {row.other}", file=sys.stderr)
                if output:
                    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
                    write_json(output, kept | {name: {**asdict(group), **Machine.description(), "quick": quick}})
        finally:
            print(group.title, markdown(group.rows), group.roofline, sep="\n\n", end="\n\n")
        refused |= any(row.refused for row in group.rows)
    return not refused


def filled(text: str, groups: dict[str, Any]) -> str:
    """The page's text with the groups' tables; KeyError for a table that was not measured."""
    return re.sub(
        r"(?m)^(% table: (\w+)\n).*?^(% end\n)",
        lambda found: f"{found[1]}\n{_table(groups[found[2]])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def _table(group: dict[str, Any]) -> str:
    return f"{markdown(Row(**row) for row in group['rows'])}\n{Machine(**group['roofline'])}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="some groups")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to see that it runs")
    parser.add_argument("--json", type=Path, help="a file for all rows and the machine; other groups in it are kept")
    parser.add_argument("--page", action="store_true", help="only write the tables of results/bench.json to the page")
    options = parser.parse_args(arguments)
    if options.page:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))))
        return 0
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    try:
        return 0 if run(options.only, options.quick, options.json) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
