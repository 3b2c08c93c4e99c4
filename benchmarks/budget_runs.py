"""One training run of `small_budgets.py`, and the folder in which finished runs are kept."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import qpeft
from budget_rows import Row
from budget_texts import Blocks, spread
from qpeft.files import write_json
from qpeft.training.metrics_log import read_rows

BATCH, WARM_UP, CALIBRATION, MICRO_BATCH = 4, 0.06, 64, 16


class Cell(NamedTuple):
    """One run: a row at one learning rate and seed."""

    row: str
    lr: float
    seed: int


@dataclass(frozen=True)
class Setting:
    """A frozen base, its texts, and the length of every run."""

    base: nn.Module
    blocks: Blocks
    steps: int


class Study:
    """A folder with one line per finished run; validation and test losses lie in files of their own.

    Several processes may work on one folder, each with its own `part`; all read what the others wrote.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], part: int = 0):
        """Raises SystemExit if the folder holds another study."""
        self._folder, self._part = folder, part
        described = folder / "study.json"
        if not described.exists():
            write_json(described, identity)
        elif json.loads(described.read_text()) != identity:
            raise SystemExit(f"{folder} holds another study, see {described}; name another --out")

    def outcomes(self) -> dict[Cell, dict[str, Any]]:
        """What is known of every finished run, but for the test split."""
        return self._read("runs")

    def test_losses(self) -> dict[Cell, float]:
        """For the final report alone, after every choice."""
        return {cell: row["loss"] for cell, row in self._read("test").items()}

    def record(self, cell: Cell, outcome: dict[str, Any], test_loss: float) -> None:
        """The test loss first: a run counts as finished by its line in `runs`."""
        self._append("test", {**cell._asdict(), "loss": test_loss})
        self._append("runs", {**cell._asdict(), **outcome})

    def _read(self, kind: str) -> dict[Cell, dict[str, Any]]:
        rows = [row for file in sorted(self._folder.glob(f"{kind}-*.jsonl")) for row in read_rows(file)]
        return {Cell(row["row"], row["lr"], row["seed"]): row for row in rows}

    def _append(self, kind: str, row: dict[str, Any]) -> None:
        file = self._folder / f"{kind}-{self._part}.jsonl"
        written = file.read_bytes() if file.exists() else b""
        if not written.endswith(b"\n"):  # a line that a kill cut off
            file.write_bytes(written[: written.rfind(b"\n") + 1])
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")


def run(setting: Setting, row: Row, cell: Cell) -> tuple[dict[str, Any], float]:
    """Train one cell; the outcome, and apart from it the test loss (both losses infinite if it diverged)."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = build(setting.base, row, cell.seed)
    fit_frames(model, setting.blocks.train)
    if row.rates:
        train(model, setting, cell)
    validation, test = (evaluate(model, part) for part in (setting.blocks.validation, setting.blocks.test))
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {"trainable": count(model), "loss": validation, **seconds}, test


def build(base: nn.Module, row: Row, seed: int) -> nn.Module:
    """A copy of the base with its adapter; the base as it is for a row without one."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base).requires_grad_(bool(row.rates))
    return model if row.config is None else get_peft_model(model, row.config(seed))


def count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def fit_frames(model: nn.Module, train_blocks: torch.Tensor) -> None:
    """Show training blocks, spread evenly, to a model whose frames or start follow the loss gradient.

    The first ones would come from one document: on WikiText such frames cost 0.05 nats in a trial run.
    """
    config = getattr(model, "peft_config", {}).get("default")
    if "gradient" in (getattr(config, "frame", None), getattr(config, "start", None)):
        chosen = spread(train_blocks, CALIBRATION).split(MICRO_BATCH)
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids} for ids in chosen])


def train(model: nn.Module, setting: Setting, cell: Cell) -> None:
    """AdamW on random blocks in an order that only the seed decides; clipping at norm 1 per parameter group."""
    optimiser = torch.optim.AdamW(qpeft.param_groups(model, cell.lr), lr=cell.lr, weight_decay=0.0)
    schedule = LambdaLR(optimiser, lambda step: rate_factor(step, setting.steps))
    model.train()
    for ids in batches(setting.blocks.train, setting.steps, cell.seed):
        model(input_ids=ids, labels=ids).loss.backward()
        for group in optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()


def rate_factor(step: int, steps: int) -> float:
    """A linear rise over the first 6 % of the steps, then a linear fall to 0."""
    rise = max(1, round(WARM_UP * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def batches(blocks: torch.Tensor, steps: int, seed: int) -> list[torch.Tensor]:
    """`steps` batches (4, T), pass after pass over shuffled blocks."""
    draw = torch.Generator().manual_seed(seed)
    passes = math.ceil(steps * BATCH / len(blocks))
    order = torch.cat([torch.randperm(len(blocks), generator=draw) for _ in range(passes)])
    return [blocks[order[BATCH * step : BATCH * (step + 1)]] for step in range(steps)]


@torch.no_grad()
def evaluate(model: nn.Module, blocks: torch.Tensor) -> float:
    """Total nats / predicted tokens over all blocks (all but the first token of each are predicted)."""
    model.eval()
    nats = 0.0
    for ids in blocks.split(MICRO_BATCH):
        logits = model(input_ids=ids).logits[:, :-1]  # (B, T-1, vocabulary)
        nats += cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").double().sum().item()
    loss = nats / blocks[:, 1:].numel()
    return loss if math.isfinite(loss) else math.inf
