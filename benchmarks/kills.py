"""Kills `qpeft train` and `qpeft compare run` with SIGKILL: nothing is lost, and the result does
not differ by a bit.

    python benchmarks/kills.py --out DIR [--kills 1000] [--what train,compare]      # or single cases: --what sora

A run is killed up to twelve times before it may end: at a random time, or just before one of its
file operations (open, flush, rename, remove), which random times hardly hit. Of a study either the
runner alone or all processes are killed. After each kill every complete file is read, and finished
work must be present. The final result must equal that of an uninterrupted run. An attempt is a fork
of this process, which has everything imported.

DIR/kills.jsonl has a row per kill. A run with a fault stays in DIR. Exit code 1: there is one.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import psutil
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from tiny_models import gpt2, save_base

PLAN = "QPEFT_KILLS_PLAN"  # environment variable: the file that tells a fork when to kill
WORDS = (
    "the",
    "king",
    "queen",
    "bird",
    "went",
    "into",
    "wood",
    "and",
    "said",
    "how",
    "well",
    "it",
    "sings",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MOST = 12  # kills of a run
_PATIENCE = 60.0  # seconds until cells without a runner must have ended
_LIMIT = 600.0  # seconds of an attempt
_METHODS = {
    "qpa": ("--method=qpa", "--r=4"),
    "quantum_peft": ("--method=quantum_peft", "--r=2"),
    "lora": ("--method=lora", "--r=4"),
    "sora": ("--method=sora", "--r=4"),
    "shots": ("--method=qpa", "--r=4", "--shots=128", "--shot-budget=100000000"),
}
_STUDY = """
name: small
title: A small study
question: Is the result of a killed run the same?
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
run: {{model: "{base}", data: "{text}", steps: 4, batch_size: 2, seq_len: 32, eval_every: 2, save_every: 2}}
test_blocks: 4
costs: false
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: base, method: none}}
"""
# what depends on the time and the number of attempts
_TIMED = {
    "seconds",
    "seconds_per_step",
    "created_at",
    "peak_mem_bytes",
    "circuits",
    "out",
    "command",
}
_TIMED_FILES = (
    "summary.csv",
    "report.html",
    "jobs.jsonl",
    "README.md",
    "training_args.bin",
    ".lock",
)


@dataclass(frozen=True)
class Moment:
    """When an attempt is killed: after `seconds`, or before the `change`-th file operation; with
    neither it may end.
    """

    seconds: float | None = None
    change: int | None = None
    whom: str = "all"  # or "runner", whose cells must then end


@dataclass(frozen=True)
class Ended:
    """The exit code (negative after a signal), seconds, and the number of file operations."""

    code: int
    seconds: float
    changes: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument(
        "--what", default="train,compare", help="train, compare, or cases: qpa, lora, ..."
    )
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    kills = options.kills
    attempts = Attempts(out / "attempts")
    commands = cases(options.what.split(","), out / "inputs")
    whole = {
        name: _unbroken(words, attempts, out / "unbroken" / name)
        for name, words in commands.items()
    }
    rows: list[dict[str, Any]] = []
    for run in itertools.count():
        if len(rows) >= kills:
            break
        counts = Counter(row["case"] for row in rows)
        case = min(commands, key=counts.__getitem__)
        # few kills reach every case as well
        most = min(max(1, min(_MOST, kills // len(commands))), kills - len(rows))
        new = _killed_run(case, commands[case], attempts, out / f"run-{run}", whole[case], most)
        rows += new
        with (out / "kills.jsonl").open("a") as file:
            file.writelines(json.dumps({"run": run, **row}) + "\n" for row in new)
        faults = "; ".join(fault for row in new for fault in row["faults"])
        print(
            f"{len(rows):5} kills, the last {len(new)} of {case}: {faults or 'equal'}", flush=True
        )
    bad = sum(bool(row["faults"]) for row in rows)
    print(
        f"{dict(Counter(row['case'] for row in rows))}\n{len(rows)} kills; {bad} runs with a fault"
    )
    return int(bad > 0)


def cases(what: list[str], inputs: Path) -> dict[str, list[str]]:
    """The commands of `what`, kinds or names, without a run folder; base, data and study are made
    if missing.
    """
    base = inputs / "base"
    text = inputs / "tale.txt"
    study = inputs / "small.yaml"
    if not study.exists():
        disable_progress_bar()  # its thread would prevent forks
        torch.manual_seed(0)
        save_base(base, gpt2(vocab_size=257, n_embd=64, n_head=4, n_positions=256))
        draw = random.Random(0)
        text.write_text(
            " ".join(draw.choice(WORDS) + ("." if i % 9 == 8 else "") for i in range(800))
        )
        study.write_text(_STUDY.format(base=base, text=text))
    sizes = ("--steps=8", "--batch-size=2", "--seq-len=32", "--lr=0.01", "--warmup=0.2")
    shared = (
        "train",
        f"--model={base}",
        f"--data={text}",
        *sizes,
        "--save-every=2",
        "--eval-every=3",
    )
    found = {name: [*shared, "--eval-blocks=4", *words] for name, words in _METHODS.items()}
    found["compare"] = ["compare", "run", str(study), "--workers=2"]
    return {
        name: words
        for name, words in found.items()
        if {name, "compare" if name == "compare" else "train"} & {*what}
    }


def _unbroken(words: list[str], attempts: Attempts, folder: Path) -> tuple[Path, Ended]:
    """An uninterrupted run in `folder`, and its cost."""
    shutil.rmtree(folder, ignore_errors=True)
    ended = attempts.run(words, folder, Moment())
    if ended.code:
        raise RuntimeError(f"{words} ends with exit code {ended.code}; see {attempts.log}")
    return folder, ended


def _killed_run(
    case: str,
    words: list[str],
    attempts: Attempts,
    folder: Path,
    whole: tuple[Path, Ended],
    most: int,
) -> list[dict[str, Any]]:
    """Kill and resume a run until an attempt ends: a row per kill, faults of the final result in
    the last row.
    """
    draw = random.Random(f"{folder.parent.name} {case} {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    before = finished_work(folder)
    n_kills = draw.randint(1, most)
    while not faults:
        moment = Moment() if len(rows) == n_kills else _draw(draw, whole[1], case)
        ended = attempts.run(words, folder, moment)
        if ended.code != -signal.SIGKILL:
            faults = (
                differences(folder, whole[0]) if ended.code == 0 else [f"exit code {ended.code}"]
            )
            break
        after = finished_work(folder)
        faults = [*damaged(folder), *lost_work(before, after)]
        rows.append(
            {
                "case": case,
                **{k: v for k, v in asdict(moment).items() if v is not None},
                "faults": [],
            }
        )
        before = after
    if faults and not rows:
        raise RuntimeError(f"{case} failed without a kill: {faults}")
    if faults:
        rows[-1]["faults"] = faults
        folder.rename(folder.with_name(f"broken-{folder.name}"))
    else:
        shutil.rmtree(folder)
    return rows


def _draw(draw: random.Random, took: Ended, case: str) -> Moment:
    """A random moment of an uninterrupted run; a resumed one may end before it."""
    whom = draw.choice(["runner", "all"]) if case == "compare" else "all"
    if draw.random() < 0.5:
        return Moment(seconds=draw.uniform(0, took.seconds), whom=whom)
    return Moment(change=draw.randint(1, took.changes), whom=whom)


# -- attempts


class Attempts:
    """Runs one attempt at a time; their output goes to `log`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._plan, self._counter, self.log = (
            folder / "plan.json",
            folder / "changes",
            folder / "log.txt",
        )
        self._plan.unlink(missing_ok=True)
        os.environ[PLAN] = str(self._plan)  # also read by the server that forks cells
        self._server = _start_server()

    def run(self, words: list[str], out: Path, moment: Moment) -> Ended:
        """Run `qpeft WORDS`, which works in `out`, until `moment`, and wait for the end of all its
        processes.
        """
        self._counter.write_bytes(b"")
        plan = {
            "folder": str(out),
            "counter": str(self._counter),
            "at": moment.change,
            "whom": moment.whom,
        }
        self._plan.write_text(json.dumps(plan))
        began = time.perf_counter()
        if (runner := os.fork()) == 0:
            self._become([*words, f"--out={out}"])
        code = self._until(runner, moment)
        seconds = time.perf_counter() - began
        end = time.monotonic() + _PATIENCE
        while _children(self._server):
            if time.monotonic() > end:
                raise RuntimeError("a cell outlives its runner")
            time.sleep(0.002)
        return Ended(code, seconds, self._counter.stat().st_size)

    def _become(self, words: list[str]) -> None:
        """Never returns."""
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            server = forkserver._forkserver  # type: ignore[attr-defined]
            server.ensure_running = lambda: None  # it runs, but not as a child of this process
            from qpeft_lab.cli.app import build

            build()(words, prog_name="qpeft")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(code)

    def _until(self, runner: int, moment: Moment) -> int:
        """The exit code of `runner`, which is killed at its moment, and its cells if the moment
        includes them.
        """
        end = time.monotonic() + (_LIMIT if moment.seconds is None else moment.seconds)
        while time.monotonic() < end:
            pid, status = os.waitpid(runner, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        for pid in [
            runner,
            *(child.pid for child in _children(self._server) if moment.whom == "all"),
        ]:
            _kill(pid)
        _, status = os.waitpid(runner, 0)
        if moment.seconds is None:
            raise RuntimeError(f"a run did not end within {_LIMIT:g} s")
        return os.waitstatus_to_exitcode(status)


def _start_server() -> psutil.Process:
    """The process from which cells are forked, one for all attempts; it and this one import
    everything.
    """
    from qpeft_lab.cli import console  # noqa: F401
    from qpeft_lab.compare import cell, runner  # noqa: F401

    forkserver.set_forkserver_preload(["qpeft_lab.compare.preload", "kills"])
    first = multiprocessing.get_context("forkserver").Process(target=int)
    first.start()
    first.join()  # the server is ready
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if (
        len([name for name in names if name != "jemalloc_bg_thd"]) > 1
    ):  # pyarrow stops its thread during a fork
        raise RuntimeError(
            f"a process with the threads {names} cannot be forked safely; set OMP_NUM_THREADS=1"
        )
    return psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [
            child
            for child in process.children(recursive=True)
            if child.status() != psutil.STATUS_ZOMBIE
        ]
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# -- file operations, counted over all processes of an attempt


def _arm() -> None:
    """Called in every new fork, of this process and of the server: count operations, and kill
    before one of them.
    """
    file = Path(os.environ.get(PLAN, ""))
    if not file.is_file():
        return
    plan = json.loads(file.read_text())
    counter = os.open(plan["counter"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def change(path: Any) -> None:
        if str(Path(path).absolute()).startswith(plan["folder"] + os.sep):
            os.write(counter, b".")  # an append is atomic
            if os.lseek(counter, 0, os.SEEK_CUR) == plan["at"]:
                _strike(plan["whom"])

    def opened(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        folder_at = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}.get(event)
        if folder_at is not None:
            name = os.fsdecode(arguments[0])
            folder = arguments[folder_at]
            change(name if folder < 0 else f"{opened(folder)}/{name}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _WRITES:
            change(os.fsdecode(arguments[0]))

    def fsync(target: Any, really: Any = os.fsync) -> None:
        change(opened(target if isinstance(target, int) else target.fileno()))
        really(target)

    os.fsync = fsync  # has no audit event
    sys.addaudithook(audit)


def _strike(whom: str) -> None:
    """Kill the runner, and with "all" its cells."""
    parent = multiprocessing.parent_process()  # of a cell; None in the runner
    cells = [child.pid for child in multiprocessing.active_children()]
    if parent is not None:  # the server is the parent of all cells
        cells = [
            child.pid
            for child in psutil.Process(os.getppid()).children()
            if child.pid != os.getpid()
        ]
        _kill(parent.pid or 0)
    if whom == "all":
        for pid in cells:
            _kill(pid or 0)
    if whom == "all" or parent is None:
        _kill(os.getpid())


# frozen: a collection would copy all imported objects
os.register_at_fork(before=gc.freeze, after_in_child=_arm)

# -- checks of a folder


def damaged(folder: Path) -> list[str]:
    """Complete files that cannot be read."""
    found = []
    for path in _complete(folder):
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)} is damaged: {error}")
    return found


def finished_work(folder: Path) -> dict[str, Any]:
    """The work that a resumed command must not repeat: rows, and the last complete checkpoint of
    each run.
    """
    rows = {_cell(row): row for row in _rows(folder / "rows.jsonl")}
    steps: dict[str, int] = {}
    for mark in folder.glob("**/checkpoints/checkpoint-*/complete"):
        run = str(mark.relative_to(folder).parents[2])
        if "/." not in f"/{run}":  # hidden: being removed
            steps[run] = max(steps.get(run, 0), int(mark.parent.name.removeprefix("checkpoint-")))
    shots = sum(row["shots"] for row in _rows(folder / "jobs.jsonl"))
    return {
        "rows": rows,
        "steps": steps,
        "shots": shots,
        "result": (folder / "result.json").exists(),
    }


def lost_work(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Work of `before` that is missing in `after`."""
    lost = [
        f"{name} was written again"
        for name, was in before["rows"].items()
        if after["rows"].get(name) != was
    ]
    for run, step in before["steps"].items():
        # the folder of a cell with a row is removed
        is_done = len(after["rows"]) > len(before["rows"])
        if after["steps"].get(run, 0) < step and not is_done:
            lost.append(f"{run} restarted before step {step}")
    lost += ["shots that were sent are not counted"] * (after["shots"] < before["shots"])
    return lost + ["the run is unfinished again"] * (after["result"] < before["result"])


def differences(folder: Path, whole: Path) -> list[str]:
    """Between the finished run and the uninterrupted one, bit for bit except for times."""
    ours, theirs = (
        {str(p.relative_to(place)) for p in place.rglob("*")} for place in (folder, whole)
    )
    found = [
        f"{name} is missing or left over"
        for name in sorted(ours ^ theirs)
        if not name.endswith(".lock")
    ]
    for name in sorted(ours & theirs):
        one = folder / name
        other = whole / name
        if (
            one.is_file()
            and one.name not in _TIMED_FILES
            and _untimed(_read(one)) != _untimed(_read(other))
        ):
            found.append(f"{name} differs")
    return found


def _complete(folder: Path) -> Iterator[Path]:
    """Complete files: not hidden, not in an unfinished checkpoint."""
    for path in folder.rglob("*"):
        place = next((p for p in path.parents if re.fullmatch(r"checkpoint-\d+", p.name)), None)
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and (place is None or (place / "complete").exists()):
            yield path


def _read(path: Path) -> Any:
    """Content of any file of qpeft; raises if it is damaged."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":  # rows of a study in any order
        return sorted(_rows(path), key=_cell)
    if path.suffix == ".safetensors":
        return _plain(load_file(path))
    if path.suffix in (".pt", ".pth"):
        with safe_globals():
            return _plain(torch.load(path, weights_only=True))
    if path.name == "complete":  # the hashes of all files of the checkpoint
        for digest, name in (line.split("  ", 1) for line in path.read_text().splitlines()):
            if hashlib.sha256((path.parent / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} has another hash")
        return None
    if path.suffix == ".html" and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("its end is missing")
    return path.read_bytes()


def _cell(row: dict[str, Any]) -> str:
    return "/".join(str(row.get(name)) for name in ("study", "method", "hash", "name"))


def _rows(path: Path) -> list[Any]:
    """Rows of a log, if it exists, without an unfinished last line."""
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def _plain(value: Any) -> Any:
    """Tensors as bytes, so that values can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tobytes() if hasattr(value, "tobytes") else value


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _untimed(item) for key, item in value.items() if key not in _TIMED}
        return kept | (
            {"curve": [point[:2] for point in value["curve"]]} if "curve" in value else {}
        )
    return [_untimed(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
