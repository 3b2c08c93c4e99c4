"""The speed limits of the machine on one thread: the roofline."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

PACKAGES = ("torch", "transformers", "peft", "pennylane", "pennylane-lightning", "torchquantum", "tensorcircuit-ng")
PACKAGES += ("jax", "qiskit", "qiskit-aer")
COPIED = 2**26  # float32 entries, 256 MiB: larger than any cache
SIDE = 1536  # of the matrices


@dataclass(frozen=True)
class Machine:
    """Bytes per second of a copy (read and written), and operations per second of `torch.mm` in both precisions."""

    copy: float
    sgemm: float
    dgemm: float

    @staticmethod
    def measure(quick: bool = False) -> Machine:
        rounds, side, copied = (1, 128, 2**16) if quick else (5, SIDE, COPIED)
        source, a = torch.randn(copied), torch.randn(side, side)
        target, double = torch.empty_like(source), a.double()
        tasks = {"copy": lambda: target.copy_(source), "s": lambda: torch.mm(a, a), "d": lambda: double.mm(double)}
        seconds = {name: median(samples) for name, samples in turns(tasks, rounds, process_time).items()}
        return Machine(8 * copied / seconds["copy"], 2 * side**3 / seconds["s"], 2 * side**3 / seconds["d"])

    def __str__(self) -> str:
        return (
            f"Roofline: copy {self.copy / 1e9:.1f} GB/s, torch.mm {self.sgemm / 1e9:.0f} GF/s in float32, "
            f"{self.dgemm / 1e9:.0f} GF/s in float64"
        )

    def flops(self, dtype: torch.dtype) -> float:
        return self.dgemm if dtype == torch.float64 else self.sgemm

    @staticmethod
    def description() -> dict[str, str | int | dict[str, str]]:
        """The processor, its cores, and the versions of the programs."""
        return {
            "processor": _processor(),
            "cores": os.cpu_count() or 1,
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
        }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def turns(
    tasks: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = perf_counter
) -> dict[str, list[float]]:
    """Seconds of each task in each round by `clock`; every round runs every task once.

    Other load on the machine affects all tasks equally. Each timed call follows an untimed one of the same task, which
    fills the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return seconds
