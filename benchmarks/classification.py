"""New classes on a frozen base: what QPA and Quantum-PEFT add to a new head, compared with LoRA.

    python benchmarks/classification.py --out runs/classes                          # all parts
    python benchmarks/classification.py --out runs/classes --parts digits           # scikit-learn's digits alone
    python benchmarks/classification.py --out runs/classes --json classes.json      # write the results as well
    python benchmarks/classification.py --out runs/classes --bases-only             # bases and data, for other studies

Three parts. digits: a ViT that was trained on 0 to 4 learns 5 to 9 (`examples/digits.py`). cifar10: a ViT that was
trained here on the first five classes learns the last five, from 1,000 images. sst2: the lower two layers of the
embedded base, after training on the sentences without labels, learn the sentiment of film reviews, from 6,920
sentences.

Every run trains a new head; all but one also train an adapter on all linear maps of the base. In a part all have the
same number of steps, batches in the same order, and initial values that depend on the seed alone. The learning rate of
a row is the best of its own (three; four for the head alone) on a validation split of the training data with seed 100,
in runs that may be shorter; a control takes the learning rate of its row. Then the seeds 0, 1, 2 are trained on all
training data and evaluated on the test data. One thread. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import json
import warnings
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import pandas as pd
import torch
from scipy.stats import t
from transformers.utils.logging import disable_progress_bar

from classification_parts import BASELINE, PARTS, Part
from qpeft.errors import TrainingError
from qpeft.files import write_json
from qpeft.training import TrainResult, TrainSettings, train

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TUNING_SEED, SEEDS = 100, (0, 1, 2)


class Row(NamedTuple):
    """A method and its fields; a control uses the learning rate of the row it is `like`."""

    method: str
    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    like: str = ""


_RATES = (1e-3, 2e-3, 5e-3)
_ALPHA = {"lora_alpha": 16}
_QPA = {"r": 4, **_ALPHA}
_QUANTUM_PEFT = {"r": 8, **_ALPHA}
_WIDE = {"r": 32, "n_layers": 4, **_ALPHA}
ROWS = {
    BASELINE: Row("head", {}, (5e-3, 1.5e-2, 5e-2, 1.5e-1)),
    "LoRA r=4": Row("lora", {"r": 4, **_ALPHA}, _RATES),
    "QPA r=4": Row("qpa", _QPA, (2e-4, 5e-4, 1e-3)),
    "Quantum-PEFT r=8": Row("quantum_peft", _QUANTUM_PEFT, _RATES),
    "QPA r=4, no feature": Row("qpa", {**_QPA, "feature_source": "none"}, like="QPA r=4"),
    "Quantum-PEFT r=8, signs for CZ": Row(
        "quantum_peft", {**_QUANTUM_PEFT, "entangler": "signs"}, like="Quantum-PEFT r=8"
    ),
    "Quantum-PEFT r=8, framed": Row("quantum_peft", {**_QUANTUM_PEFT, "frame": "gradient"}, _RATES),
    "Quantum-PEFT r=32": Row("quantum_peft", _WIDE, _RATES),
    "Quantum-PEFT r=32, signs for CZ": Row("quantum_peft", {**_WIDE, "entangler": "signs"}, like="Quantum-PEFT r=32"),
    "LoRA r=1": Row("lora", {"r": 1, **_ALPHA}, _RATES),
    "bottleneck of 8": Row("bottleneck", {"bottleneck_size": 8}, (2e-3, 5e-3, 2e-2)),
}


def tune(part: Part, row: str) -> float:
    """The learning rate with the best accuracy on the validation split, then the lowest loss."""
    tried: dict[float, tuple[float, float]] = {}
    for lr in ROWS[row].rates:
        try:
            score = run(part, row, lr, TUNING_SEED, part.tuning_steps, "fit", "validation").after
        except TrainingError as diverged:
            print(f"{row}, lr {lr:g}: {diverged}", flush=True)
            continue
        tried[lr] = (score.accuracy, -score.loss)
    return max(tried, key=lambda lr: tried[lr])


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
    print(json.dumps({"row": row, "lr": lr, "seed": seed, "accuracy": result.after.accuracy}), flush=True)
    return result


def lines(part: Part) -> list[dict[str, Any]]:
    """A line for each row: accuracy on the test data, and its difference to the head alone, paired by seed."""
    tuned = {row: tune(part, row) for row in part.rows if ROWS[row].rates}
    found: list[dict[str, Any]] = []
    for row in part.rows:
        like = ROWS[row].like or row
        lr, rates = tuned[like], ROWS[like].rates
        results = [run(part, row, lr, seed, part.steps, "train", "test") for seed in SEEDS]
        accuracies = [result.after.accuracy for result in results]
        baseline = found[0]["accuracies"] if found else accuracies
        differences = [a - b for a, b in zip(accuracies, baseline, strict=True)]
        first, n = results[0], len(differences)
        found.append(
            {
                "row": row,
                "lr": lr,
                "at_edge": len(rates) > 2 and lr in (min(rates), max(rates)),
                "trained_adapter": first.trainable - first.trainable_head,
                "trained_head": first.trainable_head,
                "n_examples": first.after.n_examples,
                "accuracies": accuracies,
                "difference": mean(differences),
                "reach": float(t.ppf(0.975, n - 1)) * stdev(differences) / sqrt(n),  # half of the 95 % interval
            }
        )
    return found


def show(name: str, part: Part, found: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(found)[["row", "trained_adapter", "lr"]]
    table["accuracy, %"] = [f"{100 * mean(x['accuracies']):.1f} ± {100 * stdev(x['accuracies']):.1f}" for x in found]
    table["to the head alone, points"] = [f"{100 * x['difference']:+.1f} ± {100 * x['reach']:.1f}" for x in found]
    size = f"{found[0]['n_examples']} test examples, head of {found[0]['trained_head']} parameters"
    print(f"\n{name}: {part.steps} steps, {part.options}; {size}", table.to_string(index=False), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for bases, data and run folders")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cifar10", type=Path, default=SHARED / "cifar10_subset", metavar="FOLDER")
    parser.add_argument("--sst2", type=Path, default=SHARED / "sst2", metavar="FOLDER")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--bases-only", action="store_true", help="make the bases and the data, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    found = {}
    for name in options.parts:
        source = getattr(options, name, None)
        if source is not None and not source.exists():
            print(f"{name} is skipped: {source} does not exist; pass the folder with --{name}")
            continue
        (options.out / name).mkdir(parents=True, exist_ok=True)
        part = PARTS[name](options.out / name, source)
        if options.bases_only:
            print(f"{name}: {part.base}")
            continue
        found[name] = lines(part)
        show(name, part, found[name])
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
