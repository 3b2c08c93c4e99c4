"""Many short training runs, each in its own folder: a killed study goes on, a finished cell is not trained again."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from qpeft.demo import base_path
from qpeft.errors import TrainingError
from qpeft.training import TrainSettings, train

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


class Cell(NamedTuple):
    """One training run: a row's method and settings at one learning rate and seed."""

    row: str
    lr: float
    seed: int


class Outcome(NamedTuple):
    """Trained parameters, and the validation loss in nats a token before and after (NaN after: it diverged)."""

    trainable: int
    before: float
    after: float


def parser(doc: str | None, steps: int, seeds: list[int]) -> argparse.ArgumentParser:
    """The options that studies share; the base and its text come with qpeft and NumPy by default."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="one run folder per cell goes here")
    made.add_argument("--model", default=str(base_path()), help="default: the embedded base")
    made.add_argument("--data", default="numpy-docs")
    made.add_argument("--steps", type=int, default=steps)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return made


def train_all(
    arguments: argparse.Namespace,
    rows: Mapping[str, tuple[str, dict[str, Any]]],
    rates: tuple[float, ...],
    shared: Mapping[str, Any] = LORA,
) -> dict[Cell, Outcome]:
    """Train every row (name -> method and its settings) at every rate and seed, on one thread.

    A method may name its host: "qpa over prefix". `shared` settings are those of every row that does not set them.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cells = [Cell(row, lr, seed) for row in rows for lr in rates for seed in arguments.seeds]
    shown = track(cells, "Training", console=Console(stderr=True))
    return {cell: _train(arguments, cell, rows[cell.row][0], {**shared, **rows[cell.row][1]}) for cell in shown}


def _train(arguments: argparse.Namespace, cell: Cell, method: str, settings: dict[str, Any]) -> Outcome:
    method, _, host = method.partition(" over ")
    name = f"{cell.row} lr{cell.lr:g} seed{cell.seed}".replace(",", "").replace(" ", "_")
    run = TrainSettings(
        model=arguments.model,
        data=arguments.data,
        out=str(arguments.out / name),
        method=method,
        host=host or "lora",
        method_settings=settings,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seq_len=128,
        lr=cell.lr,
        seed=cell.seed,
        eval_every=arguments.steps,
        save_every=arguments.steps,
        eval_blocks=128,
    )
    try:
        result = train(run)
    except TrainingError:
        return Outcome(0, math.nan, math.nan)
    return Outcome(result.trainable, result.before.loss, result.after.loss)
