"""Two short studies of QPA with fixed learning rates: tables of the validation loss in nats per token.

    python benchmarks/short_studies.py feature_sources --out runs/features     # embedded base, NumPy's texts
    python benchmarks/short_studies.py learning_rate_scales --out runs/scales
    python benchmarks/short_studies.py feature_sources --out runs/features --model M --data D --steps 150

feature_sources: QPA with its circuit, and with classical controls instead of it. QPA generates a rank-4 LoRA on all
linear maps with half of its parameters; everything else is equal: initial MLP, data order, learning rate. LoRA of rank
4 and of rank 1 are baselines.

learning_rate_scales: scales for QPA's parametrization. A value is initial value + scale * tau, so under Adam the angles
learn at angle_scale * lr and the MLP at mlp_scale * lr. "nan" is a run that diverged.

Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from qpeft.demo import base_path
from qpeft.errors import TrainingError
from qpeft.methods.qpa.settings import FEATURE_SOURCES
from qpeft.training import TrainSettings, train

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
SCALES = [(1.0, mlp) for mlp in (1.0, 5.0, 10.0, 20.0, 40.0)] + [(angle, 10.0) for angle in (0.1, 10.0, 50.0)]


class Study(NamedTuple):
    """Rows (name -> method and fields) that are trained at every learning rate and seed."""

    rows: dict[str, tuple[str, dict[str, Any]]]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]


STUDIES = {
    "feature_sources": Study(
        {
            "LoRA, rank 4": ("lora", {}),
            "LoRA, rank 1": ("lora", {"r": 1, "lora_alpha": 2}),
            **{f"QPA, {source}": ("qpa", {"budget": 0.5, "feature_source": source}) for source in FEATURE_SOURCES},
            **{
                f"QPA, affine MLP, {s}": ("qpa", {"hidden": None, "activation": "identity", "feature_source": s})
                for s in ("qnn", "none")
            },
        },
        rates=(2e-3,),
        seeds=(0, 1, 2),
    ),
    "learning_rate_scales": Study(
        {
            "LoRA": ("lora", {}),
            **{f"QPA, angles x{a:g}, MLP x{m:g}": ("qpa", {"angle_scale": a, "mlp_scale": m}) for a, m in SCALES},
        },
        rates=(2e-4, 1e-3, 2e-3),
        seeds=(0,),
    ),
}


def run(options: argparse.Namespace, row: str, lr: float, seed: int) -> dict[str, Any]:
    """Train one cell in a folder of its own."""
    method, settings = STUDIES[options.study].rows[row]
    name = f"{row} lr{lr:g} seed{seed}".replace(",", "").replace(" ", "_")
    run_settings = TrainSettings(
        model=options.model,
        data=options.data,
        out=str(options.out / name),
        method=method,
        method_settings={**LORA, **settings},
        steps=options.steps,
        batch_size=options.batch_size,
        seq_len=128,
        lr=lr,
        seed=seed,
        eval_every=options.steps,
        save_every=options.steps,
        eval_blocks=128,
    )
    try:
        result = train(run_settings)
    except TrainingError:
        return {"row": row, "lr": lr, "loss": math.nan}
    print(f"{name}: {result.before.loss:.4f} -> {result.after.loss:.4f}", flush=True)
    return {"row": row, "lr": lr, "loss": result.after.loss, "parameters": result.trainable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--model", default=str(base_path()), help="default: the embedded base")
    parser.add_argument("--data", default="numpy-docs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    study = STUDIES[options.study]
    runs = [run(options, row, lr, seed) for row in study.rows for lr in study.rates for seed in study.seeds]
    losses = pd.DataFrame(runs).groupby(["row", "lr"], sort=False)
    print(losses.agg(parameters=("parameters", "max"), mean=("loss", "mean"), sd=("loss", "std")).to_string())


if __name__ == "__main__":
    main()
