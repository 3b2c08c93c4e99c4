"""Commands that a guide consists of, run unattended: two at a time, one thread each, resumable.

A job is finished when its file exists. The time that each took is in `times.jsonl`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from qpeft_lab.files import json_line, read_json_lines
from qpeft_lab.training.run_folder import read_rows

WORKERS = 2


class Job(NamedTuple):
    """A command, and the file that exists once it has ended well."""

    name: str
    command: str  # of qpeft, or a script with its arguments
    product: Path
    n_steps: int  # its time, in steps of training
    prints_product: bool = False


def run(jobs: Sequence[Job], out: Path) -> None:
    """Run what is not finished, and add the time that it took to `times.jsonl`."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    for job in jobs:
        if job.product.exists():
            continue
        partial = job.product.with_suffix(".partial") if job.prints_product else Path(os.devnull)
        words = job.command.split()
        program = [] if words[0].endswith(".py") else ["-m", "qpeft"]
        begin = time.monotonic()
        with (out / f"{job.name}.log").open("a") as log, partial.open("w") as printed:
            command = [sys.executable, *program, *words]
            process = subprocess.Popen(command, stdout=printed, stderr=log, env=one_thread)
            _, status, usage = os.wait4(process.pid, 0)
        took = {
            "job": job.name,
            "seconds": time.monotonic() - begin,
            "processor_seconds": usage.ru_utime + usage.ru_stime,
            "megabytes": usage.ru_maxrss * 1024 / 1e6,  # of KiB
        }
        with (out / "times.jsonl").open("a") as times:
            times.write(json_line(took))
        if status:
            raise SystemExit(f"{job.name} failed; see {log.name}, and run this again to resume")
        if job.prints_product:
            partial.replace(job.product)


def times_of(out: Path) -> list[dict[str, Any]]:
    """The rows of `times.jsonl`."""
    return read_json_lines(out / "times.jsonl", lambda row: row["seconds"] > 0, "remove it")


def cost(out: Path) -> dict[str, float]:
    """Memory of the largest process, and the time of all."""
    times = times_of(out)
    return {
        "megabytes": max(row["megabytes"] for row in times),
        "processor_seconds": sum(row["processor_seconds"] for row in times),
    }


def done_steps(job: Job) -> int:
    """How much of a job is finished, in steps; of a training run also while it runs."""
    if job.product.exists():
        return job.n_steps
    rows = read_rows(job.product.parent / "metrics.jsonl")
    return rows[-1]["step"] if rows and job.product.name == "result.json" else 0


def run_stages(stages: Sequence[Sequence[Sequence[Job]]], out: Path) -> None:
    """Run the stages one after the other, and print what is being done and the time left.

    A stage consists of chains, which run at the same time; the jobs of a chain run in turn.
    """
    jobs = [job for stage in stages for chain in stage for job in chain]
    total = sum(job.n_steps for job in jobs)
    before = sum(map(done_steps, jobs))
    begin = time.monotonic()
    for stage in stages:
        with ThreadPoolExecutor(WORKERS) as workers:
            running = [workers.submit(run, chain, out) for chain in stage]
            while wait(running, timeout=20).not_done:
                done = sum(map(done_steps, jobs))
                minutes = (time.monotonic() - begin) / 60
                left = f"{minutes * (total - done) / (done - before):.0f}" if done > before else "?"
                unfinished = [job.name for job in jobs if not job.product.exists()]
                now = [name for name in unfinished if (out / f"{name}.log").exists()]
                print(
                    f"{done / total:.0%} after {minutes:.0f} minutes, about {left} left;"
                    f" {', '.join(now)}",
                    flush=True,
                )
        for future in running:
            future.result()
