"""Damages valid files in thousands of ways and loads each as a user would: a correct load, or a clear error.

    python benchmarks/bad_files.py --out bad-files [--mutations 10000] [--seed 0] [--only KIND]

The valid files are made once: compact checkpoints of every method, exported adapters, run folders, a study, data of
every format (`bad_files_made`). A mutation damages one file of a copy (`bad_files_mutations`). A process of its own,
with limits on time and memory, loads it in several ways and checks the outcome (`bad_files_loads`). OUT/bad-files.jsonl
has one line per mutation; run the same command again to resume. Exit code 1: a load had a wrong outcome.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bad_files_loads import LEFT_OUT, Good, Load, World, evaluate, generate, is_left_to_peft, judge
from bad_files_made import make_all
from bad_files_mutations import Mutation, mutate

SECONDS = 60.0  # a load that takes longer hangs
MEMORY = 3 * 2**30  # bytes of address space for a load
RIGHT = ("correct", "refused", "refused by PEFT", "loaded by PEFT")
_BATCH = 20  # mutations per process, unless one ends it


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    world = prepare(options.out / "made")
    log = options.out / "bad-files.jsonl"
    done = {json.loads(line)["number"] for line in log.read_text().splitlines()} if log.exists() else set()
    todo = [number for number in range(options.mutations) if number not in done]
    for row in run(world, options.seed, todo, options.only):
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if wrong := [load for load in row["loads"] if load["outcome"] not in RIGHT]:
            print(json.dumps({**row, "loads": wrong}), flush=True)
    return show(log)


def prepare(folder: Path) -> World:
    """Make the valid files if they are missing, and the outputs of their models."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_all(folder)
        world = World(folder)
        for name, good in world.goods.items():
            if name == "classifier":
                good.answers = {"evaluate": evaluate(folder, good.path, "--task", "text-classification")}
            elif name.startswith(("adapter", "exported")):
                good.answers = {"evaluate": evaluate(folder, good.path), "generate": generate(good.path)}
    _warm_up(world)
    gc.freeze()
    return world


def _warm_up(world: World) -> None:
    """Load every kind of valid file once, so that forked processes find everything imported."""
    names = ("adapter-qpa", "adapter-attached_prefix", "classifier", "study.yaml")
    for name in (*names, *(name for name in world.goods if name.startswith("data"))):
        good = world.goods[name]
        for way, load in world.ways(name).items():
            with tempfile.TemporaryDirectory() as place, redirect_stderr(io.StringIO()):
                try:
                    load(Load(world, _copied(name, good, Path(place)), good, neutral=True))
                except Exception as error:
                    if judge(way, error)[0] != "refused":  # some adapters have no circuit
                        raise


def _copied(name: str, good: Good, place: Path) -> Path:
    """A copy of the valid file or folder in `place`."""
    copy = place / good.path.name
    shutil.copytree(good.path, copy) if good.path.is_dir() else shutil.copyfile(good.path, copy)
    if name == "run":  # resumes only in the folder that its settings name
        config = json.loads((copy / "config.json").read_text())
        config["settings"]["out"] = str(copy)
        (copy / "config.json").write_text(json.dumps(config, indent=2))
    return copy


def run(world: World, seed: int, numbers: Sequence[int], only: str | None = None) -> Iterator[dict[str, Any]]:
    """The mutations of these numbers, with the outcomes of their loads.

    One process does several of them. If it ends early, the load that it was doing is the cause.
    """
    left = list(numbers)
    while left:
        with tempfile.TemporaryDirectory() as name:
            place, batch = Path(name), left[:_BATCH]
            reports, ended = _in_child(lambda report, b=batch, p=place: _run_some(world, seed, b, only, p, report))
            rows = _rows(reports)
            last = rows[-1]
            if len(last["loads"]) < len(last["ways"]):
                last["loads"].append({"way": last["ways"][len(last["loads"])], "outcome": ended, "message": ""})
            for row in rows:
                if (place / str(row["number"]) / "code-ran").exists():
                    row["loads"].append({"way": "any", "outcome": "code ran", "message": ""})
        yield from rows
        left = left[len(rows) :]


def _rows(reports: list[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for report in reports:
        if "failed" in report:
            raise RuntimeError(f"the benchmark itself failed:\n{report['failed']}")
        if "number" in report:
            rows.append({**report, "loads": []})
        else:
            rows[-1]["loads"].append(report)
    return rows


def _run_some(
    world: World, seed: int, numbers: Sequence[int], only: str | None, place: Path, report: Callable[[Any], None]
) -> None:
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        names = [name for name in world.goods if only is None or only in name]
        name = draw.choices(names, [_weight(name) for name in names])[0]
        inside, good = place / str(number), world.goods[name]
        inside.mkdir()
        copy = _copied(name, good, inside)
        mutation = mutate(copy, good.path, inside / "code-ran", draw)
        first, *others = (way for way in world.ways(name) if (way, mutation.how) not in LEFT_OUT)
        ways = [first, *draw.sample(others, min(1, len(others)))]
        report({"number": number, "good": name, **asdict(mutation), "ways": ways})
        for way in ways:
            report(_load(world, name, way, copy, mutation))


def _weight(name: str) -> float:
    """Runs take a second each; data are read by libraries with tests of their own."""
    return {"run": 1.0, "classifier": 0.5, "study.yaml": 3.0}.get(name, 0.7 if name.startswith("data-") else 1.5)


def _load(world: World, name: str, way: str, copy: Path, mutation: Mutation) -> dict[str, Any]:
    error = None
    try:
        world.ways(name)[way](Load(world, copy, world.goods[name], mutation.neutral))
    except Exception as raised:
        error = raised
    outcome, message = judge(way, error)
    if outcome not in RIGHT and is_left_to_peft(way, copy):
        outcome = "loaded by PEFT"
    row = {"way": way, "outcome": outcome, "message": message}
    if outcome not in RIGHT and error is not None:
        row["where"] = "".join(traceback.format_tb(error.__traceback__)[-8:])
    return row


def _in_child(work: Callable[[Callable[[Any], None]], None]) -> tuple[list[Any], str]:
    """The reports of `work(report)` in a separate process, and its end: "done", "hang" or "crash"."""
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        os.close(receive)
        _be_child(work, send)
    os.close(send)
    content, ended, deadline = b"", "done", time.monotonic() + SECONDS
    while True:
        if not select.select([receive], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            ended = "hang"
            break
        if not (part := os.read(receive, 2**16)):
            break
        content, deadline = content + part, time.monotonic() + SECONDS  # of each report
    os.close(receive)
    status = os.waitpid(child, 0)[1]
    if ended == "done" and status != 0:
        ended = f"crash {status}"
    return [json.loads(line) for line in content.splitlines()], ended


def _be_child(work: Callable[[Callable[[Any], None]], None], send: int) -> None:
    try:
        gc.disable()
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        warnings.simplefilter("ignore")
        logging.raiseExceptions = False  # a handler of transformers may hold a stream that a test has closed
        work(lambda value: os.write(send, (json.dumps(value) + "\n").encode()) and None)
    except BaseException:
        os.write(send, (json.dumps({"failed": traceback.format_exc()}) + "\n").encode())
    os._exit(0)


def show(log: Path) -> int:
    """Print the number of loads by kind of file and outcome; 1 if an outcome is wrong."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    loads = pd.DataFrame(
        [(row["good"].partition("-")[0], load["outcome"]) for row in rows for load in row["loads"]],
        columns=["file", "outcome"],
    )
    print(f"{len(rows)} mutations, {len(loads)} loads", pd.crosstab(loads.file, loads.outcome), sep="\n")
    return int(not loads.outcome.isin(RIGHT).all())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the valid files and the results")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only files with this in their name, such as qpa, exported, data, study")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
