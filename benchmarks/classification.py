"""New classes on a frozen base: what QPA and Quantum-PEFT add to a new head, beside LoRA.

    python benchmarks/classification.py --out runs/classes                          # all parts
    python benchmarks/classification.py --out runs/classes --parts digits           # scikit-learn's digits alone
    python benchmarks/classification.py --out runs/classes --json classes.json      # write the result as well

Three parts. digits: a ViT that knows 0 to 4 learns 5 to 9 (`examples/digits.py`). cifar10: a ViT that was trained
here on the first five classes learns the last five, from 1,000 images. sst2: the lower two layers of the embedded base,
after reading the sentences without labels, learn whether a sentence of a film review praises or blames, from 6,920.

Every run trains a new head; all but one train an adapter beside it, on all linear maps of the base. In a part all have
the same steps, batches in the same order, and starts that the seed alone decides. The learning rate of a row is the
best of its own (three; four for the head alone) on a validation split of the training data with seed 100, in runs that
may be shorter; a control takes the rate of the row that it controls. Then the seeds 0, 1, 2 train on all training data
and are scored on the test data. One thread. Run again, the same command goes on; a finished run is not trained again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from classification_parts import Part, cifar10_part, digits_part, sst2_part
from classification_report import Line, lines, table
from classification_rows import ROWS
from qpeft.errors import TrainingError
from qpeft.files import write_json
from qpeft.training import TrainResult, TrainSettings, train

SHARED = Path(__file__).resolve().parents[2] / "shared"
TUNING_SEED, SEEDS = 100, (0, 1, 2)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    found: dict[str, list[Line]] = {}
    for name in arguments.parts:
        if (part := prepare(name, arguments)) is None:
            continue
        rates = {row: tune(part, row) for row in part.rows if ROWS[row].rates}
        found[name] = lines(final_runs(part, rates), rates)
        Console(width=140).print(table(name, part, found[name]))
    if arguments.json:
        write_json(arguments.json, {name: [line._asdict() for line in part] for name, part in found.items()})


def prepare(name: str, arguments: argparse.Namespace) -> Part | None:
    """The part with its base and its files; None, and a word why, if its data are not there."""
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "digits":
        return digits_part(folder)
    source = getattr(arguments, name)
    if not source.exists():
        print(f"{name} is left out: there is no {source}; name the folder with --{name}")
        return None
    return cifar10_part(folder, source) if name == "cifar10" else sst2_part(folder, source)


def tune(part: Part, row: str) -> float:
    """The rate with the best accuracy on the validation split; the lower loss decides between equals."""
    tried: dict[float, tuple[float, float]] = {}
    for lr in ROWS[row].rates:
        try:
            score = run(part, row, lr, TUNING_SEED, part.tuning_steps, "fit", "validation").after
        except TrainingError as diverged:
            print(f"{row}, lr {lr:g}: {diverged}", flush=True)
            continue
        tried[lr] = (score.accuracy, -score.loss)
    return max(tried, key=lambda lr: tried[lr])


def final_runs(part: Part, rates: dict[str, float]) -> dict[str, list[TrainResult]]:
    """Each row's runs on the test data, one a seed."""
    return {
        row: [run(part, row, rates[ROWS[row].like or row], seed, part.steps, "train", "test") for seed in SEEDS]
        for row in part.rows
    }


def run(part: Part, row: str, lr: float, seed: int, steps: int, data: str, eval_data: str) -> TrainResult:
    """One training run in a folder of its own. Raises TrainingError if it diverged."""
    settings = TrainSettings(
        task=part.task,
        model=str(part.base),
        data=part.file(data),
        eval_data=part.file(eval_data),
        method=ROWS[row].method,
        method_settings=ROWS[row].settings,
        steps=steps,
        lr=lr,
        seed=seed,
        eval_every=steps,
        save_every=steps,
        out=str(part.data / f"{row} lr{lr:g} seed{seed} steps{steps}".replace(",", "").replace(" ", "_")),
        **part.options,
    )
    result = train(settings)
    shown = {"part": part.data.name, "row": row, "lr": lr, "seed": seed, "accuracy": result.after.accuracy}
    print(json.dumps({**shown, "seconds": round(result.seconds, 1)}), flush=True)
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="bases, data and one run folder per run go here")
    parser.add_argument(
        "--parts", nargs="+", choices=["digits", "cifar10", "sst2"], default=["digits", "cifar10", "sst2"]
    )
    parser.add_argument("--cifar10", type=Path, default=SHARED / "data" / "cifar10_subset", metavar="FOLDER")
    parser.add_argument("--sst2", type=Path, default=SHARED / "data" / "sst2", metavar="FOLDER")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
