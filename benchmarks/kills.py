"""Kills `qpeft train` and `qpeft compare run` with SIGKILL: nothing is lost, and the result does not differ by a bit.

    python benchmarks/kills.py --out DIR [--kills 1000] [--what train,compare]      # or single cases: --what sora

A run is killed up to twelve times before it may end. Half of the kills occur at a random time of the run, half just
before one of its file operations, each equally likely: open, flush, rename, remove. After each kill, every complete
file is read, and finished work must be present. The final result must equal that of an uninterrupted run.
One attempt in forty is a process of its own; the others are forks of this one.

DIR/kills.jsonl has a row per kill, saved when its run has ended. Run the same command again to resume; a folder with
another name has other moments. A run with a fault stays in DIR. Exit code 1: there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import pandas as pd
import torch
from transformers.utils.logging import disable_progress_bar

from kill_attempts import Attempts, Ended, Moment
from kill_checks import damaged, differences, finished_work, lost_work, share_done, wrong_so_far

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from tiny_models import gpt2, save_base

WORDS = ("the", "king", "queen", "bird", "went", "into", "wood", "and", "said", "how", "well", "it", "sings")
_MOST = 12  # kills of a run
_ONE_COMMAND_IN = 40
Row = dict[str, Any]
_METHODS = {
    "qpa": ("--method=qpa", "--r=4"),
    "quantum_peft": ("--method=quantum_peft", "--r=2"),
    "lora": ("--method=lora", "--r=4"),
    "sora": ("--method=sora", "--r=4"),
    "qaa": ("--method=qaa",),
    "shots": ("--method=qpa", "--r=4", "--shots=128", "--shot-budget=100000000"),
}
_STUDY = """
name: small
title: A small study
question: Is the result of a killed run the same?
base: {base}
data: {text}
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
training: {{steps: 4, batch_size: 2, seq_len: 32, eval_every: 2, eval_blocks: 4, save_every: 2}}
test_blocks: 4
capacity: false
costs: false
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: base, method: none}}
"""


@dataclass(frozen=True)
class Case:
    """A command without its run folder."""

    what: str  # train or compare
    name: str
    words: tuple[str, ...]

    def command(self, out: Path) -> list[str]:
        return [*self.words, f"--out={out}"]


class Unbroken(NamedTuple):
    """The folder of an uninterrupted run, and its cost."""

    folder: Path
    took: Ended


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    out = options.out.resolve()
    attempts = Attempts(out / "attempts")
    unbroken = {case: _unbroken(case, attempts, out) for case in cases(options.what.split(","), out / "inputs")}
    log = out / "kills.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    run = rows[-1]["run"] + 1 if rows else 0
    most = max(1, min(_MOST, options.kills // len(unbroken)))  # few kills reach every case as well
    while len(rows) < options.kills:
        case = min(unbroken, key=lambda case: sum(row["case"] == case.name for row in rows))
        new = _killed_run(case, unbroken[case], attempts, out / f"run-{run}", min(most, options.kills - len(rows)))
        with log.open("a") as file:
            file.writelines(json.dumps({"run": run, **row}) + "\n" for row in new)
        rows += [{"run": run, **row} for row in new]
        run += 1
        faults = "; ".join(fault for row in new for fault in row["faults"])
        print(f"{len(rows):5} kills, the last {len(new)} of {case.name}: {faults or 'equal'}", flush=True)
    print(_summary(rows))
    return int(any(row["faults"] for row in rows))


def cases(what: list[str], inputs: Path) -> list[Case]:
    """The commands of `what`, kinds or names; base, data and study are made in the folder `inputs` if missing."""
    base, text, study = inputs / "base", inputs / "tale.txt", inputs / "small.yaml"
    if not study.exists():
        disable_progress_bar()  # its thread would prevent forks
        torch.manual_seed(0)
        save_base(base, gpt2(vocab_size=257, n_embd=64, n_head=4, n_positions=256))
        draw = random.Random(0)
        text.write_text(" ".join(draw.choice(WORDS) + ("." if i % 9 == 8 else "") for i in range(800)))
        study.write_text(_STUDY.format(base=base, text=text))
    sizes = ("--steps=8", "--batch-size=2", "--seq-len=32", "--lr=0.01", "--warmup=0.2")
    saving = ("--save-every=2", "--eval-every=3", "--eval-blocks=4")
    shared = ("train", f"--model={base}", f"--data={text}", *sizes, *saving)
    trained = [Case("train", name, (*shared, *words)) for name, words in _METHODS.items()]
    compared = Case("compare", "compare", ("compare", "run", str(study), "--workers=2"))
    return [case for case in (*trained, compared) if {case.what, case.name} & set(what)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--what", default="train,compare", help="train, compare, or cases: qpa, lora, ...")
    return parser.parse_args(arguments)


def _killed_run(case: Case, unbroken: Unbroken, attempts: Attempts, folder: Path, most: int) -> list[Row]:
    """Kill and resume a run until an attempt ends: a row per kill, faults of the final result in the last row."""
    draw = random.Random(f"{folder.parent.name} {case.name} {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    rows, faults = [], []
    before = finished_work(folder)
    n_kills = draw.randint(1, most)
    while not faults:
        left = 1 - share_done(before, finished_work(unbroken.folder))
        moment = Moment() if len(rows) == n_kills else _draw(draw, unbroken.took, left, case)
        ended = attempts.run(case.command(folder), folder, moment)
        if ended.code != -signal.SIGKILL or moment == Moment():
            faults = differences(folder, unbroken.folder) if ended.code == 0 else [f"exit code {ended.code}"]
            break
        after = finished_work(folder)
        faults = [*damaged(folder), *lost_work(before, after), *wrong_so_far(folder, unbroken.folder)]
        rows.append({"what": case.what, "case": case.name, **_described(moment), "faults": []})
        before = after
    if not faults:
        shutil.rmtree(folder)
        return rows
    if not rows:
        raise RuntimeError(f"{case.name} failed without a kill: {faults}")
    rows[-1]["faults"] = faults
    folder.rename(folder.with_name(f"broken-{folder.name}"))
    return rows


def _draw(draw: random.Random, took: Ended, left: float, case: Case) -> Moment:
    """A random moment of the remaining work."""
    whom = draw.choice(["runner", "all"]) if case.what == "compare" else "all"
    left = max(0.3, left)  # resuming is work as well
    if (is_command := draw.random() < 1 / _ONE_COMMAND_IN) or draw.random() < 0.5:
        return Moment(seconds=draw.uniform(0, left * took.seconds), whom=whom, is_command=is_command)
    return Moment(change=draw.randint(1, round(left * took.changes)), whom=whom)


def _described(moment: Moment) -> Row:
    return {name: value for name, value in asdict(moment).items() if value is not None}


def _unbroken(case: Case, attempts: Attempts, out: Path) -> Unbroken:
    """An uninterrupted run, done once."""
    folder, record = out / "unbroken" / case.name, out / "unbroken" / f"{case.name}.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        ended = attempts.run(case.command(folder), folder, Moment())
        if ended.code:
            raise RuntimeError(f"{case.name} ends with exit code {ended.code}; see {out / 'attempts' / 'log.txt'}")
        record.write_text(json.dumps(asdict(ended)))
    return Unbroken(folder, Ended(**json.loads(record.read_text())))


def _summary(rows: Sequence[Row]) -> str:
    """Kills by case and kind of moment, and the number of runs with a fault."""
    names = [row["case"] if row["what"] == "train" else f"{row['case']}, {row['whom']}" for row in rows]
    kinds = ["a real command" if r["is_command"] else "at a change" if "change" in r else "at a time" for r in rows]
    runs, bad = {row["run"] for row in rows}, {row["run"] for row in rows if row["faults"]}
    kills = pd.crosstab(pd.Series(names, name="killed"), pd.Series(kinds, name="when")) if rows else ""
    return f"{kills}\n{len(rows)} kills of {len(runs)} runs; {len(bad)} runs with a fault"


if __name__ == "__main__":
    sys.exit(main())
