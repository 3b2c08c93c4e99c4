"""Test perplexity against trainable parameters, from 100 to 6,000: Quantum-PEFT, its classical twins, and stock PEFT.

    python benchmarks/small_budgets.py counts                                      # trainable parameters, no training
    python benchmarks/small_budgets.py run --out runs/numpy --rows main            # embedded base, NumPy's texts
    python benchmarks/small_budgets.py run --out runs/grimm --model M --corpus grimm --data F
    python benchmarks/small_budgets.py report --out runs/grimm --model M           # validation only, at any time
    python benchmarks/small_budgets.py report --out runs/grimm --model M --test    # once, when every run is done

Protocol, the same for every row. The corpus is split by document order, 80/10/10 % of the characters, into training,
validation and test. Documents stand behind one start token each and are cut into blocks of 128 tokens, no padding.
A run is 300 steps of 4 blocks: AdamW without weight decay, 6 % warm-up, then linearly to 0, clipping at norm 1 per
parameter group, float32; the order of the data depends on the seed alone. Every row has exactly three learning
rates. They are tried with seed 0; the best on the validation split is taken, and a best one at an edge is marked,
never extended. Then seeds 0 to 4 run at that rate. Every run ends with one evaluation on all validation and all test
blocks; test losses go to files of their own, which only `report --test` opens, and only when every run is done.
Loss is total nats / predicted tokens (127 a block); perplexity is exp(mean loss over the seeds); the share of the full
gain is (base - loss) / (base - loss of full fine-tuning), both on the test split.

Adapters sit on all linear maps of every layer unless the row says otherwise. Rows whose frames or start follow the
gradient see 64 training blocks, spread evenly, before training. The seed decides the adapter's start, stock
PEFT's frozen random projections, and the data order. One thread. Run again, the same command goes on; several processes
share a study with --share 0/2 and --share 1/2.
"""

from __future__ import annotations

import argparse
import json
import warnings
from fnmatch import fnmatch
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import qpeft
from budget_report import as_json, best_rate, final_cells, lines, markdown, table, tuning_cells
from budget_rows import Row, build_rows
from budget_runs import Cell, Setting, Study, build, count, run
from budget_texts import CORPORA, Blocks, load_blocks, spread
from qpeft.demo import base_path
from qpeft.training.base_model import fingerprint, load_config, load_model, load_tokenizer

LENGTH = 128


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # PEFT on Conv1D and on tied heads, the same for every row
    rows = _rows(arguments)
    {"counts": show_counts, "run": run_study, "report": report}[arguments.command](arguments, rows)


def show_counts(arguments: argparse.Namespace, rows: dict[str, Row]) -> None:
    base = load_model(arguments.model)
    shown = Table("method", "trainable", "of these acting", "rank of the update", "rates", title="Trainable parameters")
    for name, row in rows.items():
        known = _acting_and_rank(base, row)
        rates = ", ".join(f"{rate:g}" for rate in row.rates)
        shown.add_row(name, f"{count(build(base, row, seed=0)):,}", *(f"{n:,}" if n else "" for n in known), rates)
    Console(width=140).print(shown)


def run_study(arguments: argparse.Namespace, rows: dict[str, Row]) -> None:
    blocks = load_blocks(arguments.corpus, arguments.data, load_tokenizer(arguments.model), LENGTH)
    blocks = Blocks(blocks.train, *(spread(part, arguments.eval_blocks) for part in blocks[1:]))
    setting = Setting(load_model(arguments.model), blocks, arguments.steps)
    part, parts = map(int, arguments.share.split("/"))
    study = Study(arguments.out, _identity(arguments, setting), part)
    for name in list(rows)[part::parts]:
        _run_missing(study, setting, rows[name], tuning_cells(name, rows[name]))
        lr = best_rate(name, rows[name], study.outcomes())
        if lr is not None and not arguments.only_tune:
            _run_missing(study, setting, rows[name], final_cells(name, rows[name], lr, arguments.seeds))


def report(arguments: argparse.Namespace, rows: dict[str, Row]) -> None:
    described = json.loads((arguments.out / "study.json").read_text())
    found = lines(rows, Study(arguments.out, described), arguments.seeds, arguments.test)
    if arguments.json:
        print(json.dumps({**described, "rows": as_json(found)}, indent=2))
    elif arguments.markdown:
        print(markdown(found))
    else:
        title = f"{described['corpus']}, {described['steps']} steps, {len(arguments.seeds)} seeds"
        Console(width=140).print(table(found, title))


def _acting_and_rank(base: nn.Module, row: Row) -> tuple[int | None, int | None]:
    """What `qpeft.plan` knows of Quantum-PEFT's rows."""
    config = row.config(0) if row.config else None
    if not isinstance(config, qpeft.QuantumPeftConfig):
        return None, None
    plan = qpeft.plan(base, config)
    return plan.acting, plan.rank_bound


def _run_missing(study: Study, setting: Setting, row: Row, cells: list[Cell]) -> None:
    for cell in cells:
        if cell not in study.outcomes():
            outcome, test_loss = run(setting, row, cell)
            study.record(cell, outcome, test_loss)
            done = f"{cell.row:28} lr {cell.lr:<7g} seed {cell.seed}"
            print(f"{done}  {outcome['loss']:.4f}  {outcome['cpu_seconds']:5.1f} s CPU", flush=True)


def _identity(arguments: argparse.Namespace, setting: Setting) -> dict[str, object]:
    """What must be equal for runs to be comparable."""
    return {
        "corpus": arguments.corpus,
        "steps": arguments.steps,
        "base": fingerprint(arguments.model, load_config(arguments.model)),
        "blocks": [len(part) for part in setting.blocks],
        "tokens": setting.blocks.sha256(),
    }


def _rows(arguments: argparse.Namespace) -> dict[str, Row]:
    """The rows that match any of the patterns; `main` stands for the main ones."""
    known = build_rows(load_config(arguments.model).model_type)

    def wanted(name: str) -> bool:
        return any(known[name].main if pattern == "main" else fnmatch(name, pattern) for pattern in arguments.rows)

    if rows := {name: row for name, row in known.items() if wanted(name)}:
        return rows
    raise SystemExit(f"no row matches {' '.join(arguments.rows)}; the rows are: {', '.join(known)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["counts", "run", "report"])
    parser.add_argument("--out", type=Path, help="the study's folder")
    parser.add_argument("--model", default=str(base_path()), help="default: the embedded base")
    parser.add_argument("--corpus", choices=CORPORA, default="numpy-docs")
    parser.add_argument("--data", type=Path, help="the text file of corpus grimm or wikitext")
    parser.add_argument("--rows", nargs="+", default=["*"], help="names or patterns such as 'core-*', or main")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--eval-blocks", type=int, default=10**6, help="score at most so many blocks of each split")
    parser.add_argument("--only-tune", action="store_true", help="stop after the three rates of every row")
    parser.add_argument("--share", default="0/1", help="i/n: run only every n-th row, from the i-th (0 the first)")
    parser.add_argument("--test", action="store_true", help="report: open the test split's losses")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if arguments.command != "counts" and arguments.out is None:
        parser.error("--out is needed: the study's folder")
    return arguments


if __name__ == "__main__":
    main()
