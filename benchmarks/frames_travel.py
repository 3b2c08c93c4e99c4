r"""Do frames travel? Test loss of framed, shared Quantum-PEFT with frames from several sources.

    python benchmarks/frames_travel.py run --model M --grimm F --wikitext F --wikitext103 F --shakespeare F \
        --stories F --out O
    python benchmarks/frames_travel.py report --out O            # a table in Markdown, and report.json

For stories260K, trained on three texts: Grimm's tales, WikiText-2 and NumPy's documentation. Frames come from 64 blocks
of one of these sources, from the base weights, or are random:

    own text            the training split of the text itself
    near text           another text of the domain: WikiText-103 for WikiText-2, SciPy's documentation for NumPy's;
                        for Grimm's tales Shakespeare, which is literature as well
    another domain      Shakespeare; for Grimm's tales WikiText-103
    the model's domain  TinyStories, the model's own training data
    half of each        32 blocks of TinyStories and 32 of Shakespeare

All rows are R=32, r=5, L=1, circuits shared by type: 357 trainable parameters. The protocol is that of
`small_budgets.py` with 120 steps of 4 blocks of 128 tokens, except that the learning rate is chosen with another seed:
five learning rates with seed 1000, the best on the validation split, then seeds 0 to 4 at that learning rate. Their
test losses are reported. Losses are those on at most 200 blocks of a split. Frames are fitted once for each source, and
kept in a frame file.

There are 210 training runs: ten for each of seven sources and three texts. A run takes 6 seconds on one core of a
CPU, and the study about 25 minutes. A run is appended to runs.jsonl when it is complete. Run the same command again to
resume. Two processes with different --texts and --out use two cores.
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
from qpeft.demo.corpus import package_docs
from qpeft.files import write_json
from qpeft.training.metrics_log import read_rows
from small_budgets import CALIBRATION, CORPORA, MICRO_BATCH, SEEDS, Blocks, count, evaluate, load_blocks, spread, train
from small_budgets_rows import CIRCUIT_RATES

STEPS = 120
TUNING_SEED = 1000  # chooses the learning rate, and is not reported
TEXTS = ("grimm", "wikitext", "numpy-docs")
OWN, NEAR, FAR, DOMAIN, HALF = "own text", "near text", "another domain", "the model's domain", "half of each"
RATES = (2e-4, *CIRCUIT_RATES, 2e-2)
BASE, WITHOUT_DATA = "base model", ("weights", "random")
SOURCES = (OWN, NEAR, FAR, DOMAIN, HALF, *WITHOUT_DATA)
NEAR_TEXT = {"grimm": "shakespeare", "wikitext": "wikitext103", "numpy-docs": "scipy-docs"}
FAR_TEXT = {"grimm": "wikitext103", "wikitext": "shakespeare", "numpy-docs": "shakespeare"}
FILES = ("grimm", "wikitext", "wikitext103", "shakespeare", "stories")
EVAL_BLOCKS = 200  # of each split
SCIPY_DOCUMENTS = 600  # of thousands: 64 blocks are needed


def scenes(file: Path) -> list[str]:
    """Shakespeare: blank lines between speeches, of which about fifty are a document."""
    speeches = re.split(r"\n{2,}", file.read_text(encoding="utf-8").strip())
    return ["\n\n".join(speeches[start : start + 50]) for start in range(0, len(speeches), 50)]


def strings(file: Path) -> list[str]:
    return json.loads(file.read_text(encoding="utf-8"))


def scipy_docs() -> list[str]:
    documents = package_docs("scipy", "SciPy")
    return documents[:: max(1, len(documents) // SCIPY_DOCUMENTS)]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "shakespeare": scenes,
    "stories": strings,
    "wikitext103": strings,
    "scipy-docs": lambda _: scipy_docs(),
}
CORPORA.update(READERS)


class Cell(NamedTuple):
    text: str
    frames: str
    lr: float
    seed: int


def blocks_of(options: argparse.Namespace, text: str) -> Blocks:
    path = getattr(options, text, None)
    if text in FILES and path is None:
        raise SystemExit(f"give the file of the text {text} as --{text}")
    return load_blocks(argparse.Namespace(corpus=text, data=path, model=options.model, eval_blocks=EVAL_BLOCKS))


def calibration(options: argparse.Namespace, text: str, frames: str, own: torch.Tensor) -> torch.Tensor:
    """The blocks to which the frames are fitted, (64, T); fewer of a short text."""

    def foreign(name: str, limit: int = CALIBRATION) -> torch.Tensor:
        return spread(blocks_of(options, name).train, limit)

    if frames == HALF:
        return torch.cat([foreign(name, CALIBRATION // 2) for name in ("stories", "shakespeare")])
    if frames == OWN:
        return spread(own, CALIBRATION)
    return foreign({NEAR: NEAR_TEXT[text], FAR: FAR_TEXT[text], DOMAIN: "stories"}[frames])


def adapter(seed: int = 0, **frames: Any) -> qpeft.QuantumPeftConfig:
    common: dict[str, Any] = {"n_layers": 1, "share": "type", "frame_rank": 32, "target_modules": "all-linear"}
    return qpeft.QuantumPeftConfig(r=5, task_type="CAUSAL_LM", seed=seed, **common, **frames)


def frames_of(options: argparse.Namespace, base: Any, text: str, frames: str, own: torch.Tensor) -> dict[str, Any]:
    """The fields of the config: the frame file of a source, written if it is missing, or frames without data."""
    if frames in WITHOUT_DATA:
        return {"frame": frames}
    file = options.out / "frames" / f"{text}-{SOURCES.index(frames)}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        model = get_peft_model(copy.deepcopy(base).requires_grad_(False), adapter(frame="gradient"))
        batches = calibration(options, text, frames, own).split(MICRO_BATCH)
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids} for ids in batches], save_to=file)
    return {"frames": str(file)}


def run_cell(base: Any, blocks: Blocks, fields: dict[str, Any], cell: Cell, steps: int) -> dict[str, Any]:
    """Trainable parameters, and the validation loss of a run that tunes or the test loss of one that is reported."""
    torch.manual_seed(cell.seed)
    model = copy.deepcopy(base).requires_grad_(False)
    if cell.frames != BASE:
        model = get_peft_model(model, adapter(cell.seed, **fields))
        train(model, blocks.train, cell.lr, cell.seed, steps)
    if cell.seed == TUNING_SEED:
        return {"trainable": count(model), "validation": evaluate(model, blocks.validation)}
    return {"trainable": count(model), "test": evaluate(model, blocks.test)}


def run_study(options: argparse.Namespace) -> None:
    base = load_model(options.model)
    identity = {
        "steps": options.steps,
        "tuning_seed": TUNING_SEED,
        "base": fingerprint(options.model, load_config(options.model)),
    }
    described = options.out / "study.json"
    if not described.exists():
        write_json(described, identity)
    elif json.loads(described.read_text()) != identity:
        raise SystemExit(f"{options.out} contains another study, see {described}; choose another --out")
    drop_unfinished_line(options.out / "runs.jsonl")
    for text in options.texts:
        blocks = blocks_of(options, text)
        run_missing(options, base, blocks, {}, [Cell(text, BASE, 0.0, 0)])
        for frames in SOURCES:
            fields = frames_of(options, base, text, frames, blocks.train)
            cells = [Cell(text, frames, lr, TUNING_SEED) for lr in RATES]
            run_missing(options, base, blocks, fields, cells)
            lr = best_rate(text, frames, read_runs(options.out))
            run_missing(options, base, blocks, fields, [Cell(text, frames, lr, seed) for seed in SEEDS])


def drop_unfinished_line(file: Path) -> None:
    """Remove what a killed run has left after the last complete line."""
    if file.exists() and not (found := file.read_bytes()).endswith(b"\n"):
        file.write_bytes(found[: found.rfind(b"\n") + 1])


def run_missing(
    options: argparse.Namespace, base: Any, blocks: Blocks, fields: dict[str, Any], cells: list[Cell]
) -> None:
    for cell in cells:
        if cell not in read_runs(options.out):
            found = run_cell(base, blocks, fields, cell, options.steps)
            with (options.out / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell._asdict() | found) + "\n")
            split, loss = list(found.items())[-1]
            print(*cell, split, f"{loss:.4f}", flush=True)


def read_runs(folder: Path) -> dict[Cell, dict[str, Any]]:
    file = folder / "runs.jsonl"
    rows = read_rows(file) if file.exists() else []
    return {Cell(*(row[name] for name in Cell._fields)): row for row in rows}


def best_rate(text: str, frames: str, runs: dict[Cell, dict[str, Any]]) -> float:
    """The learning rate with the lowest validation loss of the tuning seed; KeyError while a run is missing."""
    return min(RATES, key=lambda lr: runs[Cell(text, frames, lr, TUNING_SEED)]["validation"])


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
                edge = "low" if lr == min(RATES) else "high" if lr == max(RATES) else ""
                row = {"text": text, "frames": frames, "trainable": found[0]["trainable"], "lr": lr, "edge": edge}
                lines.append(row | {"test": [run["test"] for run in found]})
    except KeyError as missing:
        raise SystemExit(f"the run {missing} is not complete; continue with `run`") from None
    write_json(options.out / "report.json", {**json.loads((options.out / "study.json").read_text()), "rows": lines})
    print(table(lines))


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: losses, and gains over the base and over random frames as shares of those of the text's own frames."""
    shown = [
        "| text | frames | learning rate | test loss | share of the gain | of the gain over random frames |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    losses = {(line["text"], line["frames"]): mean(line["test"]) for line in lines}
    for line in lines:
        text, found = line["text"], line["test"]
        spread = f" ± {stdev(found):.4f}" if len(found) > 1 else ""
        share, over_random = (
            f"{(losses[text, start] - mean(found)) / (losses[text, start] - losses[text, OWN]):.0%}"
            for start in (BASE, "random")
        )
        over_random = "" if line["frames"] == BASE else over_random
        rate = " ".join(filter(None, (f"{line['lr']:g}", line["edge"]))) if "lr" in line else ""
        shown.append(f"| {text} | {line['frames']} | {rate} | {mean(found):.4f}{spread} | {share} | {over_random} |")
    return "\n".join(shown)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/frames_travel"), help="the study's folder")
    parser.add_argument("--model", help="the folder of stories260K")
    for text in FILES:
        parser.add_argument(f"--{text}", type=Path, metavar="FILE")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # short runs
    {"run": run_study, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
