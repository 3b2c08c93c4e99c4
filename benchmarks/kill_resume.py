"""Kill `qpeft train` with SIGKILL at random steps; each resumed run must end with the bits of the unbroken one.

    python benchmarks/kill_resume.py --out kills [--kills 20] [--method qpa] [--model PATH --data FILE]

A kill waits for a random step to appear in metrics.jsonl, then for a random part of two steps, so that it falls into
forward, backward, optimiser, scoring and saving alike. Results go to OUT/kills.jsonl as they come; the same command
again goes on where it stopped. Exit code 1 if a run differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qpeft.demo import base_path
from qpeft.training.metrics_log import read_rows


def main() -> int:
    options = _options()
    unbroken = options.out / "unbroken"
    _finish(options, unbroken)
    expected = _result(unbroken)
    step_seconds = json.loads((unbroken / "result.json").read_text())["seconds_per_step"] or 0.1
    log = options.out / "kills.jsonl"
    rows = read_rows(log)
    for number in range(len(rows), options.kills):
        row = {"kill": number, **_kill_and_resume(options, number, step_seconds, expected)}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        print("kill {kill:2}  after step {seen:3}  resumed from {resumed_from:3}  {verdict}".format(**row), flush=True)
    equal = sum(row["verdict"] == "bit-equal" for row in rows)
    print(f"{equal} of {len(rows)} killed runs of {options.method} ended bit-equal ({options.steps} steps each)")
    return int(equal != len(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--method", default="qpa")
    parser.add_argument("--model", default=None, help="default: the embedded base")
    parser.add_argument("--data", default="numpy-docs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    return parser.parse_args()


def _kill_and_resume(options: argparse.Namespace, number: int, step_seconds: float, expected: Any) -> dict[str, Any]:
    draw = random.Random(f"{options.seed}:{number}")
    out = options.out / f"killed-{number}"
    seen = None
    while seen is None:  # a run that ends before its kill is begun anew, with another moment
        shutil.rmtree(out, ignore_errors=True)
        seen = _kill(options, out, draw.randint(0, options.steps - 1), draw.uniform(0, 2 * step_seconds))
    checkpoints = [int(path.parent.name.split("-")[1]) for path in out.glob("checkpoints/*/complete")]
    _finish(options, out)
    verdict = "bit-equal" if _result(out) == expected else "DIFFERENT"
    if verdict == "bit-equal":
        shutil.rmtree(out)
    return {"seen": seen, "resumed_from": max(checkpoints, default=0), "verdict": verdict}


def _kill(options: argparse.Namespace, out: Path, step: int, delay: float) -> int | None:
    """The last step that metrics.jsonl has after the kill; None if the run had ended."""
    process = _start(options, out)
    while process.poll() is None and _last_step(out) < step:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _last_step(out) if process.returncode == -signal.SIGKILL else None


def _last_step(out: Path) -> int:
    rows = read_rows(out / "metrics.jsonl")
    return rows[-1]["step"] if rows else -1


def _finish(options: argparse.Namespace, out: Path) -> None:
    process = _start(options, out)
    if process.wait():
        sys.exit(f"qpeft train ended with exit code {process.returncode}; see {out.with_suffix('.log')}")


def _start(options: argparse.Namespace, out: Path) -> subprocess.Popen:
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {
        "model": options.model or base_path(),
        "data": options.data,
        "out": out,
        "method": options.method,
        "steps": options.steps,
        "seq-len": 64,
        "batch-size": 4,
        "save-every": 5,
        "eval-every": 7,
        "eval-blocks": 8,
    }
    command = [f"--{name}={value}" for name, value in arguments.items()]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "qpeft", "train", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums depend on the thread count
            stdout=log,
            stderr=log,
        )


def _result(out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Hash of the weights, and every loss and score."""
    weights = b"".join(file.read_bytes() for file in sorted(out.glob("[ae]*/*.safetensors")))  # adapter, exported
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(out / "metrics.jsonl")]
    return hashlib.sha256(weights).hexdigest(), rows


if __name__ == "__main__":
    sys.exit(main())
