"""QPA over every kind of adapter, with the stock adapter beside it: is half of the numbers enough?

    python benchmarks/hosts.py --out runs/hosts                     # embedded base, NumPy's texts
    python benchmarks/hosts.py --out runs/hosts --model M --data D  # any other

Each row's rate is the best of three for a seed that is not reported. The table shows the validation loss in nats a
token, mean and standard deviation over the seeds. Run again, the same command goes on.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from cells import Outcome, parser, train_all

RATES = (5e-4, 2e-3, 8e-3)
TRIAL_SEED = 100
HOSTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "dora": {"r": 4, "lora_alpha": 8},
    "pissa": {"r": 4, "lora_alpha": 8},
    "vera": {"r": 256},
    "ia3": {},
    "ln_tuning": {},
    "prefix": {"num_virtual_tokens": 10},
    "prompt": {"num_virtual_tokens": 32},
    "bottleneck": {"bottleneck_size": 16},
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {**settings, **generator})
    for host, settings in HOSTS.items()
    for name, generator in ((host, {}), (f"qpa over {host}", {"budget": 0.5}))
}


def main() -> None:
    arguments = parser(__doc__, steps=100, seeds=[0, 1, 2]).parse_args()
    trials = train_all(Namespace(**{**vars(arguments), "seeds": [TRIAL_SEED]}), ROWS, RATES, shared={})
    found = {}
    for row, settings in ROWS.items():
        rate = min(RATES, key=lambda lr: _loss(trials[row, lr, TRIAL_SEED]))
        outcomes = train_all(arguments, {row: settings}, (rate,), shared={})
        found[row] = (rate, [outcomes[row, rate, seed] for seed in arguments.seeds])
    _show(arguments, found)
    _write(arguments.out / "hosts.json", arguments, found)


def _loss(outcome: Outcome) -> float:
    return outcome.after if outcome.after == outcome.after else float("inf")


def _show(arguments: Namespace, found: dict[str, tuple[float, list[Outcome]]]) -> None:
    before = found["lora"][1][0].before
    table = Table(title=f"Validation loss after {arguments.steps} steps; {before:.4f} before")
    for heading in ("adapter", "trained parameters", "rate", "loss", "s.d."):
        table.add_column(heading, justify="left" if heading == "adapter" else "right")
    for row, (rate, outcomes) in found.items():
        losses = [outcome.after for outcome in outcomes]
        spread = f"{stdev(losses):.4f}" if len(losses) > 1 else ""
        table.add_row(row, f"{outcomes[0].trainable:,}", f"{rate:g}", f"{mean(losses):.4f}", spread)
    Console().print(table)


def _write(path: Path, arguments: Namespace, found: dict[str, tuple[float, list[Outcome]]]) -> None:
    rows = [
        {"adapter": row, "rate": rate, "trained": outcomes[0].trainable, "loss": [o.after for o in outcomes]}
        for row, (rate, outcomes) in found.items()
    ]
    record = {"steps": arguments.steps, "seeds": arguments.seeds, "before": found["lora"][1][0].before, "rows": rows}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
