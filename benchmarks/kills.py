"""Kill `qpeft train` and `qpeft compare run` with SIGKILL again and again: nothing may be lost, and no bit may differ.

    python benchmarks/kills.py --out DIR [--kills 1000] [--what train,compare]      # or a case alone: --what sora

A run is killed up to twelve times before it may end. Half of the kills come at a random time of the run, half just
before one of its changes of a file, each equally likely: an opening, a flush, a renaming, a removal. After each kill,
every file that counts as written is read, and what was finished before must still be there; in the end all must equal
a run that was never killed. One attempt in forty is a process of its own; the others are forks of this one.

DIR/kills.jsonl has a row for each kill, written when its run has ended. The same command again goes on where it
stopped; a folder of another name has other moments. A run with a fault stays in DIR as it was found. Exit code 1: there
is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from kill_attempts import Attempts, Ended, Moment
from kill_cases import Case, cases
from kill_checks import damaged, differences, finished_work, lost_work, share_done, wrong_so_far

_MOST = 12  # kills of a run
_ONE_COMMAND_IN = 40

Row = dict[str, Any]


class Unbroken(NamedTuple):
    """The folder of a run that nobody killed, and what the run took."""

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
    most = max(1, min(_MOST, options.kills // len(unbroken)))  # few kills in all reach every case, too
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


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--what", default="train,compare", help="train, compare, or cases: qpa, lora, ...")
    return parser.parse_args(arguments)


def _killed_run(case: Case, unbroken: Unbroken, attempts: Attempts, folder: Path, most: int) -> list[Row]:
    """Kill a run, go on, kill it again, until an attempt ends: a row for each kill, faults of the end in the last."""
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
        raise RuntimeError(f"{case.name} went wrong without a kill: {faults}")
    rows[-1]["faults"] = faults
    folder.rename(folder.with_name(f"broken-{folder.name}"))
    return rows


def _draw(draw: random.Random, took: Ended, left: float, case: Case) -> Moment:
    """A moment of what is left to do."""
    whom = draw.choice(["runner", "all"]) if case.what == "compare" else "all"
    left = max(0.3, left)  # to begin again is work, too
    if (is_command := draw.random() < 1 / _ONE_COMMAND_IN) or draw.random() < 0.5:
        return Moment(seconds=draw.uniform(0, left * took.seconds), whom=whom, is_command=is_command)
    return Moment(change=draw.randint(1, round(left * took.changes)), whom=whom)


def _described(moment: Moment) -> Row:
    return {name: value for name, value in asdict(moment).items() if value is not None}


def _unbroken(case: Case, attempts: Attempts, out: Path) -> Unbroken:
    """A run that nobody kills; made once."""
    folder, record = out / "unbroken" / case.name, out / "unbroken" / f"{case.name}.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        ended = attempts.run(case.command(folder), folder, Moment())
        if ended.code:
            raise RuntimeError(f"{case.name} ends with exit code {ended.code}; see {out / 'attempts' / 'log.txt'}")
        record.write_text(json.dumps(asdict(ended)))
    return Unbroken(folder, Ended(**json.loads(record.read_text())))


def _summary(rows: Sequence[Row]) -> str:
    """Kills and runs with faults, by case and kind of moment."""

    def kind(row: Row) -> str:
        when = "a process of its own" if row["is_command"] else "at a change" if "change" in row else "at a time"
        return when if row["what"] == "train" else f"{when}, {row['whom']}"

    kills = Counter((row["case"], kind(row)) for row in rows)
    lines = [f"{case:14}{what:32}{n:5}" for (case, what), n in sorted(kills.items())]
    bad = {row["run"] for row in rows if row["faults"]}
    runs = {row["run"] for row in rows}
    return "\n".join([*lines, f"{len(rows)} kills of {len(runs)} runs; {len(bad)} runs with a fault"])


if __name__ == "__main__":
    sys.exit(main())
