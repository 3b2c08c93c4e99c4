"""How many blocks of text do gradient frames need? Question, rule and rows of a small study.

    python evidence/frame_blocks.py run FOLDER     # hours; resumes. FOLDER has the shared texts
    python evidence/frame_blocks.py table          # from evidence/frame_blocks.jsonl

Fixed before the rows: framed circuits of two sizes on three small bases, 100 steps of 8 x 64 tokens,
five seeds. A seed draws the blocks, the initial values and the order of the data. 64 blocks, the
earlier default, are the reference, and its mean gain (loss before minus loss after training) is the
unit. A number of blocks is enough if the mean difference to the reference, over seeds and paired by
seed, is at most 1 % of the gain in every setup, and the upper end of the 95 % t-interval of the mean
over all setups is, too. The default is the smallest number that is enough.
"""

import json
import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

from qpeft_lab.demo import base_path
from qpeft_lab.settings import RunSettings

ROWS = Path(__file__).with_suffix(".jsonl")
BLOCKS, REFERENCE, SEEDS = (4, 8, 16, 32, 64), 64, range(5)
SETTINGS = {
    "type": {"r": 8, "frame_rank": 32, "share": "type"},
    "none": {"r": 4, "frame_rank": 32, "share": "none"},
}
SETUPS = {
    "embedded-numpy": (base_path(), "numpy-docs"),
    "stories-grimm": ("models/stories260K", "data/grimm/GrimmsFairyTales.txt"),
    "bytes1m-shakespeare": (
        Path(__file__).parent / "bases" / "bytes1m",
        "data/tinyshakespeare/input.txt",
    ),
}


def run(shared: Path) -> None:
    """Append the rows that are missing."""
    import numpy as np
    import torch

    from qpeft_lab.training import fit

    torch.set_num_threads(1)
    finished = {(row["setup"], row["share"], row["seed"], row["blocks"]) for row in rows()}
    for seed, setup, share, n in product(SEEDS, SETUPS, SETTINGS, BLOCKS):
        if (setup, share, seed, n) in finished:
            continue

        def drawn(task, batch_size, seed=seed, n=n):
            order = np.random.default_rng(seed).permutation(len(task.train))[:n]
            chosen = [task.train[int(i)] for i in order]
            return [task.collate(chosen[i : i + batch_size]) for i in range(0, n, batch_size)]

        fit._batches = drawn
        model, data = SETUPS[setup]
        out = tempfile.mkdtemp()
        settings = RunSettings(
            model=str(shared / model),  # an absolute path stays
            data=data if data == "numpy-docs" else str(shared / data),
            out=out,
            method="quantum_peft",
            method_settings={"frame": "gradient", "n_layers": 1, **SETTINGS[share]},
            lr=2e-3,
            steps=100,
            batch_size=8,
            seq_len=64,
            eval_every=100,
            eval_blocks=96,
            seed=seed,
        )
        result = fit.train(settings)
        shutil.rmtree(out)
        row = {"setup": setup, "share": share, "seed": seed, "blocks": n}
        row |= {"before": result.before.loss, "after": result.after.loss}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def rows() -> list[dict]:
    """The rows that exist."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table() -> None:
    """Print the loss of a number of blocks compared with the reference, in per cent of the gain."""
    found = {(r["setup"], r["share"], r["seed"], r["blocks"]): r for r in rows()}
    for n in BLOCKS:
        lost = []  # per cent, of each seed, by setup
        for setup, share in product(SETUPS, SETTINGS):
            of = [found[setup, share, seed, REFERENCE] for seed in SEEDS]
            gain = mean(row["before"] - row["after"] for row in of)
            seeds = [found[setup, share, seed, n]["after"] for seed in SEEDS]
            lost.append([100 * (a - row["after"]) / gain for a, row in zip(seeds, of, strict=True)])
        averages = [mean(part) for part in zip(*lost, strict=True)]  # over setups, of each seed
        half = t.ppf(0.975, len(SEEDS) - 1) * stdev(averages) / len(SEEDS) ** 0.5
        setups = " ".join(f"{mean(part):6.2f}" for part in lost)
        print(f"{n:3} blocks: {setups} | mean {mean(averages):5.2f} +- {half:.2f} % of the gain")


if __name__ == "__main__":
    run(Path(sys.argv[2]).resolve()) if sys.argv[1] == "run" else table()
