"""Spoil good files in thousands of ways, load each as a user would: a correct load, or a clear error.

    python benchmarks/bad_files.py --out bad-files [--mutations 10000] [--seed 0] [--only KIND]

The files are made once: compact adapters of every method, exported ones, run folders, a study, data of every form
(`bad_files_made`). A mutation spoils one file of a copy (`bad_files_mutate`), and a process of its own, with limits of
time and memory, loads it in several ways (`bad_files_loads`, where the rules are). OUT/bad-files.jsonl gets a line for
each mutation as it comes; the same command again goes on where it stopped. Exit code 1 if a load did what it must not.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bad_files_loads import LEFT_OUT, Good, World, command, evaluate, is_left_to_peft, judge
from bad_files_made import make_all
from bad_files_mutate import Mutation, mutate

SECONDS = 60.0  # a load that takes longer hangs: 20 on a quiet machine, more where others work too
MEMORY = 3 * 2**30  # bytes of address space that a load may take beside what is there
RIGHT = ("correct", "refused", "refused by PEFT", "left to PEFT")
_BATCH = 20  # mutations that a process does, unless one ends it


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    world = prepare(options.out / "made")
    log = options.out / "bad-files.jsonl"
    done = {json.loads(line)["number"] for line in log.read_text().splitlines()} if log.exists() else set()
    todo = [number for number in range(options.first, options.first + options.mutations) if number not in done]
    for row in run(world, options.seed, options.number or todo, options.only):
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if wrong := [found for found in row["loads"] if found["outcome"] not in RIGHT]:
            print(json.dumps({**row, "loads": wrong}), flush=True)
    return show(log)


def prepare(folder: Path) -> World:
    """The good files, made where they are not, and what they give."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_all(folder)
        world = World(folder)
        for name, good in world.goods.items():
            if name.startswith(("adapter", "exported", "classifier")):
                good.answers = _answers(folder, name, good)
    _warm_up(world)
    gc.freeze()  # what is there stays as it is in every process forked off
    return world


def _warm_up(world: World) -> None:
    """Load every kind of file once, good as it is, so that processes forked off need not import what is imported."""
    nothing = Mutation("none", "", "", neutral=True)
    names = ("adapter-qpa", "adapter-attached_prefix", "classifier", "study.yaml")
    for name in (*names, *(name for name in world.goods if name.startswith("data"))):
        good = world.goods[name]
        for way, function in world.ways(name).items():
            with tempfile.TemporaryDirectory() as place, redirect_stderr(io.StringIO()):
                try:
                    function(world, _copied(name, good, Path(place)), good, nothing)
                except Exception as error:
                    if judge(way, error)[0] != "refused":  # no circuit in this adapter, for example
                        raise


def _copied(name: str, good: Good, place: Path) -> Path:
    """A copy of the good file or folder in `place`; a run goes on only under its own name."""
    copy = place / good.path.name
    shutil.copytree(good.path, copy) if good.path.is_dir() else shutil.copyfile(good.path, copy)
    if name == "run":
        config = json.loads((copy / "config.json").read_text())
        config["settings"]["out"] = str(copy)
        (copy / "config.json").write_text(json.dumps(config, indent=2))
    return copy


def _answers(made: Path, name: str, good: Good) -> dict[str, Any]:
    if name == "classifier":
        return {"evaluate": evaluate(made, good.path, "--task", "text-classification")}
    written = command("generate", "--adapter", good.path, "--prompt", "the king", "--max-new-tokens", 12)
    return {"evaluate": evaluate(made, good.path), "generate": written["text"]}


def run(world: World, seed: int, numbers: Sequence[int], only: str | None = None) -> Iterator[dict[str, Any]]:
    """Mutations by their numbers: what was spoiled, and what came of loading it.

    A process of its own does some of them, one after the other; what ends it is known by where it stood.
    """
    left = list(numbers)
    while left:
        with tempfile.TemporaryDirectory() as place:
            work = partial(_run_some, world, seed, left[:_BATCH], only, Path(place))
            reports, ended = _in_child(work)
            rows = _rows(reports)
            stood = rows[-1]  # a process that reports nothing at all is the harness's own fault
            if len(stood["loads"]) < len(stood["ways"]):
                stood["loads"].append({"way": stood["ways"][len(stood["loads"])], "outcome": ended, "message": ""})
            for row in rows:
                if Path(place, str(row["number"]), "code-ran").exists():
                    row["loads"].append({"way": "any", "outcome": "code ran", "message": ""})
        yield from rows
        left = left[len(rows) :]


def _rows(reports: list[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for report in reports:
        if "failed" in report:
            raise RuntimeError(f"the harness itself failed:\n{report['failed']}")
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
    """A run is trained on, which takes a second; data are read by libraries that are fuzzed themselves."""
    return {"run": 1.0, "classifier": 0.5, "study.yaml": 3.0}.get(name, 0.7 if name.startswith("data-") else 1.5)


def _load(world: World, name: str, way: str, copy: Path, mutation: Mutation) -> dict[str, Any]:
    error = None
    try:
        world.ways(name)[way](world, copy, world.goods[name], mutation)
    except Exception as raised:
        error = raised
    outcome, message = judge(way, error)
    if outcome not in RIGHT and is_left_to_peft(way, copy):
        outcome = "left to PEFT"
    where = {} if outcome in RIGHT or error is None else {"where": _where(error)}
    return {"way": way, "outcome": outcome, "message": message, **where}


def _where(error: Any) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-8:]]


def _in_child(work: Any) -> tuple[list[Any], str]:
    """What `work(report)` reported in a process of its own, and how that ended: "done", "hang" or "crash"."""
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
        content, deadline = content + part, time.monotonic() + SECONDS  # for each report anew
    os.close(receive)
    status = os.waitpid(child, 0)[1]
    if ended == "done" and status != 0:
        ended = f"crash {status}"
    return [json.loads(line) for line in content.splitlines()], ended


def _be_child(work: Any, send: int) -> None:
    try:
        gc.disable()
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        warnings.simplefilter("ignore")
        work(lambda value: os.write(send, (json.dumps(value) + "\n").encode()))
    except BaseException:
        os.write(send, (json.dumps({"failed": traceback.format_exc()}) + "\n").encode())
    os._exit(0)


def show(log: Path) -> int:
    """Print how often each outcome came, by kind of file; 1 if any is wrong."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    counts = Counter((row["good"].partition("-")[0], found["outcome"]) for row in rows for found in row["loads"])
    outcomes = [*RIGHT, *sorted({outcome for _, outcome in counts} - {*RIGHT})]
    print(f"{len(rows)} mutations, {sum(counts.values())} loads")
    print("file".ljust(12), *(outcome.rjust(len(outcome)) for outcome in outcomes), sep="  ")
    for kind in sorted({kind for kind, _ in counts}):
        print(kind.ljust(12), *(str(counts[kind, outcome]).rjust(len(outcome)) for outcome in outcomes), sep="  ")
    return int(any(outcome not in RIGHT for _, outcome in counts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the good files and the results")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only files whose name holds this, such as qpa, exported, data, study")
    parser.add_argument("--number", type=int, nargs="*", help="these mutations alone, again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
