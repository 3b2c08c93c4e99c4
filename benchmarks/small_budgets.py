"""Test perplexity by trainable parameters, 100 to 6,000: Quantum-PEFT, its classical controls, and stock PEFT.

    python benchmarks/small_budgets.py counts                                      # trainable parameters, no training
    python benchmarks/small_budgets.py run --out runs/numpy --rows main            # embedded base, NumPy's texts
    python benchmarks/small_budgets.py run --out runs/grimm --model M --corpus grimm --data F
    python benchmarks/small_budgets.py report --out runs/grimm --model M           # a table, and report.json

Protocol, the same for every row of `small_budgets_rows`. The corpus is split by document order, 80/10/10 % of the
characters, into training, validation and test. Documents are concatenated, each after one start token, and cut into
blocks of 128 tokens without padding. A run has 300 steps of 4 blocks: AdamW without weight decay, 6 % warm-up, then
linearly to 0, clipping at norm 1 per parameter group, float32, one thread; the order of the data depends on the seed
alone. Every row has exactly three learning rates. They are tried with seed 0, and the best on the validation split is
selected; a best one at an edge is marked, never extended. Then seeds 0 to 4 run at that learning rate. Every run ends
with one evaluation on all validation and all test blocks. `report` uses test losses only if every run is complete. The
loss is total nats / predicted tokens (127 per block); perplexity is exp(mean loss over the seeds); the share of the
full gain is (base - loss) / (base - loss of full fine-tuning), both on the test split.

Adapters are on all linear maps of every layer unless the row differs. Rows whose frames or start follow the gradient
use 64 training blocks, spread evenly, before training. The seed determines the adapter's initial values, stock PEFT's
frozen random projections, and the data order. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import pandas as pd
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import qpeft
from qpeft.core.base_model import fingerprint, load_config, load_model, load_tokenizer
from qpeft.demo import base_path
from qpeft.demo.corpus import numpy_docs
from qpeft.files import write_json
from qpeft.training.metrics_log import read_rows
from small_budgets_rows import Row, build_rows

LENGTH, STEPS, BATCH, WARM_UP, CALIBRATION, MICRO_BATCH = 128, 300, 4, 0.06, 64, 16
SEEDS = (0, 1, 2, 3, 4)
STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
Runs = dict[tuple[str, float, int], dict[str, Any]]  # by row, learning rate and seed


class Blocks(NamedTuple):
    """Token ids of each split, each (blocks, T) int64."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


# -- texts


def tales(file: Path) -> list[str]:
    """Grimm: four blank lines between tales. Straight quotes, and one line per paragraph."""
    text = file.read_text(encoding="utf-8").translate(STRAIGHT).strip()
    return [re.sub(r"\n{2,}", "\n", re.sub(r"(?<!\n)\n(?!\n)", " ", tale)) for tale in re.split(r"\n{5,}", text)]


def articles(file: Path) -> list[str]:
    """WikiText: an article begins with a line ` = Title = `."""
    parts = re.split(r"(?m)^(?= = [^=])", file.read_text(encoding="utf-8"))
    return [article.strip() for article in parts if article.strip()]


CORPORA: dict[str, Callable[[Path], list[str]]] = {
    "grimm": tales,
    "wikitext": articles,
    "numpy-docs": lambda _: numpy_docs(),
}


def load_blocks(options: argparse.Namespace) -> Blocks:
    """80/10/10 % of the characters; a document belongs to the split in which it begins."""
    documents, tokenizer = CORPORA[options.corpus](options.data), load_tokenizer(options.model)
    total, before = sum(map(len, documents)), 0
    parts: tuple[list[str], ...] = ([], [], [])
    for document in documents:
        share = before / total
        parts[0 if share < 0.8 else 1 if share < 0.9 else 2].append(document)
        before += len(document)
    blocks = []
    for part in parts:
        encoded = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        ids = torch.tensor([i for document in encoded for i in (tokenizer.bos_token_id, *document)])
        blocks.append(ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH))
    train, *held_out = blocks
    return Blocks(train, *(spread(part, options.eval_blocks) for part in held_out))


def spread(blocks: torch.Tensor, limit: int) -> torch.Tensor:
    """At most `limit` of the blocks (n, T), evenly spaced."""
    return blocks if len(blocks) <= limit else blocks[torch.arange(limit) * len(blocks) // limit]


# -- one run


def build(base: nn.Module, row: Row, seed: int) -> nn.Module:
    """A copy of the base with its adapter; the base itself for a row without one."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base).requires_grad_(bool(row.rates))
    return model if row.config is None else get_peft_model(model, row.config(seed))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def run(base: nn.Module, blocks: Blocks, row: Row, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """Trainable parameters, validation loss and test loss (infinite if the run diverged)."""
    model = build(base, row, seed)
    config = getattr(model, "peft_config", {}).get("default")
    if "gradient" in (getattr(config, "frame", None), getattr(config, "start", None)):
        chosen = spread(blocks.train, CALIBRATION).split(MICRO_BATCH)
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids} for ids in chosen])
    if row.rates:
        train(model, blocks.train, lr, seed, steps)
    return {"trainable": count(model), "loss": evaluate(model, blocks.validation), "test": evaluate(model, blocks.test)}


def train(model: nn.Module, blocks: torch.Tensor, lr: float, seed: int, steps: int) -> None:
    optimizer = torch.optim.AdamW(qpeft.param_groups(model, lr), lr=lr, weight_decay=0.0)
    rise = max(1, round(WARM_UP * steps))
    schedule = LambdaLR(optimizer, lambda i: (i + 1) / rise if i < rise else (steps - i) / max(1, steps - rise))
    draw = torch.Generator().manual_seed(seed)
    passes = math.ceil(steps * BATCH / len(blocks))
    order = torch.cat([torch.randperm(len(blocks), generator=draw) for _ in range(passes)])
    model.train()
    for step in range(steps):
        ids = blocks[order[BATCH * step : BATCH * (step + 1)]]
        model(input_ids=ids, labels=ids).loss.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


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


# -- the study


def run_study(options: argparse.Namespace, rows: dict[str, Row]) -> None:
    blocks, base = load_blocks(options), load_model(options.model)
    identity = {
        "corpus": options.corpus,
        "steps": options.steps,
        "base": fingerprint(options.model, load_config(options.model)),
        "blocks": [len(part) for part in blocks],
    }
    described = options.out / "study.json"
    if not described.exists():
        write_json(described, identity)
    elif json.loads(described.read_text()) != identity:
        raise SystemExit(f"{options.out} contains another study, see {described}; choose another --out")
    for name, row in rows.items():
        cells = [(name, lr, 0) for lr in row.rates or (0.0,)]
        _run_missing(options, base, blocks, row, cells)
        if row.rates:
            lr = best_rate(name, row, read_runs(options.out))
            _run_missing(options, base, blocks, row, [(name, lr, seed) for seed in SEEDS])


def _run_missing(options: argparse.Namespace, base: nn.Module, blocks: Blocks, row: Row, cells: list) -> None:
    for cell in cells:
        if cell not in read_runs(options.out):
            found = run(base, blocks, row, *cell[1:], options.steps)
            with (options.out / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(zip(("row", "lr", "seed"), cell, strict=True)) | found) + "\n")
            print(*cell, f"{found['loss']:.4f}", flush=True)


def read_runs(folder: Path) -> Runs:
    file = folder / "runs.jsonl"
    return {(row["row"], row["lr"], row["seed"]): row for row in (read_rows(file) if file.exists() else [])}


def best_rate(name: str, row: Row, runs: Runs) -> float:
    """The learning rate with the lowest validation loss; KeyError while a run is missing."""
    return min(row.rates, key=lambda lr: runs[name, lr, 0]["loss"]) if row.rates else 0.0


def report(options: argparse.Namespace, rows: dict[str, Row]) -> None:
    runs = read_runs(options.out)
    try:
        lines = sorted((_line(name, row, runs) for name, row in rows.items()), key=lambda line: line["trainable"])
    except KeyError as missing:
        raise SystemExit(f"the run {missing} is not complete; continue with `run`") from None
    means = {line["method"]: mean(line["test"]) for line in lines}
    for line in lines:
        if {"base", "full"} <= means.keys():
            line["share"] = (means["base"] - means[line["method"]]) / (means["base"] - means["full"])
    write_json(options.out / "report.json", {**json.loads((options.out / "study.json").read_text()), "rows": lines})
    table = pd.DataFrame(lines)
    table["perplexity"] = [math.exp(mean(line["test"])) for line in lines]
    for split in ("validation", "test"):
        table[split] = [f"{mean(x):.4f} ± {stdev(x) if len(x) > 1 else 0:.4f}" for x in table[split]]
    print(table.to_string(index=False))


def _line(name: str, row: Row, runs: Runs) -> dict[str, Any]:
    rate = best_rate(name, row, runs)
    edge = "low" if row.rates and rate == min(row.rates) else "high" if row.rates and rate == max(row.rates) else ""
    found = [runs[name, rate, seed] for seed in (SEEDS if row.rates else (0,))]
    losses = {"validation": [run["loss"] for run in found], "test": [run["test"] for run in found]}
    return {"method": name, "trainable": found[0]["trainable"], "rate": rate, "edge": edge, **losses}


def show_counts(options: argparse.Namespace, rows: dict[str, Row]) -> None:
    base = load_model(options.model)
    for name, row in rows.items():
        print(f"{name:32} {count(build(base, row, seed=0)):>9,}  {row.rates}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["counts", "run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/small_budgets"), help="the study's folder")
    parser.add_argument("--model", default=str(base_path()), help="default: the embedded base")
    parser.add_argument("--corpus", choices=CORPORA, default="numpy-docs")
    parser.add_argument("--data", type=Path, help="the text file of corpus grimm or wikitext")
    parser.add_argument("--rows", nargs="+", default=["*"], help="names or patterns such as 'core-*', or main")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--eval-blocks", type=int, default=10**6, help="evaluate at most so many blocks of each split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # PEFT on Conv1D and on tied heads, the same for every row
    rows = build_rows(load_config(options.model).model_type)
    patterns = options.rows
    rows = {n: row for n, row in rows.items() if any(row.main if p == "main" else fnmatch(n, p) for p in patterns)}
    {"counts": show_counts, "run": run_study, "report": report}[options.command](options, rows)


if __name__ == "__main__":
    main()
