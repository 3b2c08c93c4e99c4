"""Which scales to fold into QPA's parametrisation, so that an unchanged Trainer at LoRA's usual rates trains it well.

    python benchmarks/learning_rate_scales.py --out runs/scales                     # embedded base, NumPy's texts
    python benchmarks/learning_rate_scales.py --out runs/scales --model M --data D  # any other

A value is start + scale * tau, so under Adam the angles learn at angle_scale * lr and the MLP at mlp_scale * lr.
Every cell is one `qpeft.training.train` run with its own folder under --out: it survives a kill, and the same
command goes on. The table shows the validation loss in nats a token after training, stock LoRA beside it.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from qpeft.demo import base_path
from qpeft.errors import TrainingError
from qpeft.training import TrainSettings, train

RATES = (2e-4, 1e-3, 2e-3)
SCALES = [(10.0, mlp) for mlp in (1.0, 5.0, 10.0, 20.0, 40.0)] + [(angle, 10.0) for angle in (1.0, 50.0)]
ROWS: dict[str, dict[str, float]] = {
    "LoRA": {},
    **{f"QPA, angles x{a:g}, MLP x{m:g}": {"angle_scale": a, "mlp_scale": m} for a, m in SCALES},
}


def run(arguments: argparse.Namespace, row: str, lr: float, seed: int) -> tuple[float, float]:
    """Validation loss before and after one training run (after: NaN if it diverged); a finished one is remembered."""
    name = f"{row} lr{lr:g} seed{seed}".replace(",", "").replace(" ", "_")
    settings = TrainSettings(
        model=arguments.model,
        data=arguments.data,
        out=str(arguments.out / name),
        method="qpa" if ROWS[row] else "lora",
        method_settings={"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **ROWS[row]},
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seq_len=128,
        lr=lr,
        seed=seed,
        eval_every=arguments.steps,
        save_every=arguments.steps,
        eval_blocks=128,
    )
    try:
        result = train(settings)
    except TrainingError:
        return math.nan, math.nan
    return result.before.loss, result.after.loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=None, help="default: the embedded base")
    parser.add_argument("--data", default="numpy-docs")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    arguments.model = arguments.model or str(base_path())
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cells = [(row, lr, seed) for row in ROWS for lr in RATES for seed in arguments.seeds]
    losses = {cell: run(arguments, *cell) for cell in track(cells, "Training", console=Console(stderr=True))}
    before = next(iter(losses.values()))[0]
    shown = Table(title=f"Validation loss after {arguments.steps} steps; {before:.4f} before")
    shown.add_column("method")
    for lr in RATES:
        shown.add_column(f"lr {lr:g}", justify="right")
    for row in ROWS:
        shown.add_row(row, *(f"{mean(losses[row, lr, s][1] for s in arguments.seeds):.4f}" for lr in RATES))
    Console().print(shown)


if __name__ == "__main__":
    main()
