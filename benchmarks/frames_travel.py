"""Do frames travel? Test loss of framed, shared Quantum-PEFT with frames from several sources.

    python benchmarks/frames_travel.py run --model M --grimm F --wikitext F --shakespeare F --stories F --out O
    python benchmarks/frames_travel.py report --out O            # a table, and report.json

For stories260K, trained on three texts: Grimm's tales, WikiText-2 and NumPy's documentation. Frames come from 64 blocks
of the text itself, of Shakespeare, of TinyStories (the model's own training data), from the base weights, or are
random. All rows are R=32, r=5, L=1, circuits shared by type: 357 trainable parameters.

The protocol is that of `small_budgets.py` with 120 steps of 4 blocks of 128 tokens: three learning rates with seed 0,
the best on the validation split, then seeds 0 to 4 at that learning rate; test losses are reported. A run is appended
to runs.jsonl when it is complete. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from peft import get_peft_model

import qpeft
from qpeft.core.base_model import fingerprint, load_config, load_model
from qpeft.files import write_json
from qpeft.training.metrics_log import read_rows
from small_budgets import CALIBRATION, CORPORA, MICRO_BATCH, SEEDS, Blocks, count, evaluate, load_blocks, spread, train
from small_budgets_rows import CIRCUIT_RATES

STEPS = 120
TEXTS = ("grimm", "wikitext", "numpy-docs")
OWN, BASE = "own text", "base model"
FROM_TEXTS = {"another text": "shakespeare", "the model's domain": "stories"}
SOURCES = (OWN, *FROM_TEXTS, "weights", "random")
EVAL_BLOCKS = 200  # of each split of NumPy's documentation, which is long


def scenes(file: Path) -> list[str]:
    """Shakespeare: blank lines between speeches, of which about fifty are a document."""
    speeches = re.split(r"\n{2,}", file.read_text(encoding="utf-8").strip())
    return ["\n\n".join(speeches[start : start + 50]) for start in range(0, len(speeches), 50)]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "shakespeare": scenes,
    "stories": lambda file: json.loads(file.read_text(encoding="utf-8")),
}
CORPORA.update(READERS)


class Cell(NamedTuple):
    text: str
    frames: str
    lr: float
    seed: int


def blocks_of(options: argparse.Namespace, text: str) -> Blocks:
    limit = EVAL_BLOCKS if text == "numpy-docs" else 10**6
    return load_blocks(
        argparse.Namespace(corpus=text, data=getattr(options, text, None), model=options.model, eval_blocks=limit)
    )


def adapter(frames: str, seed: int) -> qpeft.QuantumPeftConfig:
    return qpeft.QuantumPeftConfig(
        r=5,
        n_layers=1,
        share="type",
        frame=frames if frames in ("weights", "random") else "gradient",
        frame_rank=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        seed=seed,
    )


def run_cell(base: Any, blocks: Blocks, calibration: torch.Tensor | None, cell: Cell, steps: int) -> dict[str, Any]:
    torch.manual_seed(cell.seed)
    model = copy.deepcopy(base).requires_grad_(False)
    if cell.frames != BASE:
        model = get_peft_model(model, adapter(cell.frames, cell.seed))
        if calibration is not None:
            chosen = spread(calibration, CALIBRATION).split(MICRO_BATCH)
            qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids} for ids in chosen])
        train(model, blocks.train, cell.lr, cell.seed, steps)
    return {"trainable": count(model), "loss": evaluate(model, blocks.validation), "test": evaluate(model, blocks.test)}


def run_study(options: argparse.Namespace) -> None:
    base = load_model(options.model)
    identity = {"steps": options.steps, "base": fingerprint(options.model, load_config(options.model))}
    described = options.out / "study.json"
    if not described.exists():
        write_json(described, identity)
    elif json.loads(described.read_text()) != identity:
        raise SystemExit(f"{options.out} contains another study, see {described}; choose another --out")
    foreign = {frames: blocks_of(options, text).train for frames, text in FROM_TEXTS.items()}
    for text in options.texts:
        blocks = blocks_of(options, text)
        calibration = {OWN: blocks.train, **foreign}
        run_missing(options, base, blocks, None, [Cell(text, BASE, 0.0, 0)])
        for frames in SOURCES:
            cells = [Cell(text, frames, lr, SEEDS[0]) for lr in CIRCUIT_RATES]
            run_missing(options, base, blocks, calibration.get(frames), cells)
            lr = best_rate(text, frames, read_runs(options.out))
            run_missing(options, base, blocks, calibration.get(frames), [Cell(text, frames, lr, s) for s in SEEDS])


def run_missing(
    options: argparse.Namespace, base: Any, blocks: Blocks, calibration: torch.Tensor | None, cells: list[Cell]
) -> None:
    for cell in cells:
        if cell not in read_runs(options.out):
            found = run_cell(base, blocks, calibration, cell, options.steps)
            with (options.out / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell._asdict() | found) + "\n")
            print(*cell, f"{found['loss']:.4f}", flush=True)


def read_runs(folder: Path) -> dict[Cell, dict[str, Any]]:
    file = folder / "runs.jsonl"
    rows = read_rows(file) if file.exists() else []
    return {Cell(*(row[name] for name in Cell._fields)): row for row in rows}


def best_rate(text: str, frames: str, runs: dict[Cell, dict[str, Any]]) -> float:
    """The learning rate with the lowest validation loss; KeyError while a run is missing."""
    return min(CIRCUIT_RATES, key=lambda lr: runs[Cell(text, frames, lr, SEEDS[0])]["loss"])


def report(options: argparse.Namespace) -> None:
    runs = read_runs(options.out)
    lines = []
    try:
        for text in options.texts:
            base = runs[Cell(text, BASE, 0.0, 0)]["test"]
            lines.append({"text": text, "frames": BASE, "trainable": 0, "test": [base]})
            for frames in SOURCES:
                lr = best_rate(text, frames, runs)
                found = [runs[Cell(text, frames, lr, seed)] for seed in SEEDS]
                edge = "low" if lr == min(CIRCUIT_RATES) else "high" if lr == max(CIRCUIT_RATES) else ""
                row = {"text": text, "frames": frames, "trainable": found[0]["trainable"], "lr": lr, "edge": edge}
                lines.append(row | {"test": [run["test"] for run in found]})
    except KeyError as missing:
        raise SystemExit(f"the run {missing} is not complete; continue with `run`") from None
    write_json(options.out / "report.json", {**json.loads((options.out / "study.json").read_text()), "rows": lines})
    for line in lines:
        losses = line["test"]
        shown = f"{mean(losses):.4f} ± {stdev(losses) if len(losses) > 1 else 0:.4f}"
        print(f"{line['text']:12} {line['frames']:20} {line['trainable']:>5} {shown} {line.get('edge', '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/frames_travel"), help="the study's folder")
    parser.add_argument("--model", help="the folder of stories260K")
    for text in ("grimm", "wikitext", "shakespeare", "stories"):
        parser.add_argument(f"--{text}", type=Path, metavar="FILE")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # short runs
    {"run": run_study, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
