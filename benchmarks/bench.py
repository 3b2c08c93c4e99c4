"""How fast qpeft is, beside others: one table of ratios, and beside it what the machine can do.

    python benchmarks/bench.py                              # `make bench`: many minutes
    python benchmarks/bench.py --only circuits columns      # some groups
    python benchmarks/bench.py --quick                      # seconds, to see that it runs; its figures say nothing
    python benchmarks/bench.py --json benchmarks/results/bench.json

One thread. A ratio is the other's time over qpeft's: above 1, qpeft is quicker. All programs of a row take turns in one
process; times are processor time, which the machine's other work disturbs little, and medians. A program's results
are compared with qpeft's before it is timed; what disagrees is refused, and the exit status is then 1. Stopped by
Ctrl-C, it shows and keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

# read by other programs when they are imported, which the groups do late
os.environ.update(OMP_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch
from rich.console import Console

from qpeft.files import write_json
from speed.machine import Machine
from speed.row import Row
from speed.table import table

GROUPS = ("circuits", "large_circuits", "columns", "tokens", "steps", "backends")


@dataclass
class Group:
    """Rows of one module of `speed`, and what the machine could do just before."""

    title: str
    roofline: Machine
    rows: list[Row] = field(default_factory=list)


def run(names: list[str], quick: bool, output: Path | None, console: Console) -> dict[str, Group]:
    """Measure the groups, one row after the other; show and write also what an interrupted group has."""
    done: dict[str, Group] = {}
    for name in names:
        with console.status(f"{name}: starting") as status:
            module = import_module(f"speed.{name}")
            group = done[name] = Group(module.TITLE, Machine.measure(quick))
            try:
                for row in module.rows(group.roofline, quick):
                    group.rows.append(row)
                    status.update(f"{name}: {len(group.rows)} rows, last {row.what} / {row.other}")
                    if output:
                        write(output, name, group, quick)
            finally:
                console.print(table(group.title, group.rows, caption=str(group.roofline)))
    return done


def write(output: Path, name: str, group: Group, quick: bool) -> None:
    """Put the group in the file; those of earlier runs stay, each beside the machine that it was measured on."""
    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    write_json(output, kept | {name: {**asdict(group), **Machine.description(), "quick": quick}})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="some groups")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to see that it runs")
    parser.add_argument("--json", type=Path, help="a file for all rows and the machine; other groups in it are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        done = run(options.only, options.quick, options.json, console)
    except KeyboardInterrupt:
        console.print("Stopped; what is shown was measured.")
        return 130
    return int(any(row.refused for group in done.values() for row in group.rows))


if __name__ == "__main__":
    sys.exit(main())
