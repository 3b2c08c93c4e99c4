"""What the machine can do on one thread: the roofline."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import process_time

import torch

from interleave import turns

PACKAGES = ("torch", "transformers", "peft", "pennylane", "pennylane-lightning", "torchquantum", "tensorcircuit-ng")
PACKAGES += ("jax", "qiskit", "qiskit-aer")
COPIED = 2**26  # float32 numbers, 256 MiB: no cache holds them
SIDE = 1536  # of the matrices


@dataclass(frozen=True)
class Machine:
    """Bytes a second of a copy, read and written both counted; operations a second of `torch.mm` in both precisions."""

    copy: float
    sgemm: float
    dgemm: float

    @staticmethod
    def measure(quick: bool = False) -> Machine:
        rounds, side, copied = (1, 128, 2**16) if quick else (5, SIDE, COPIED)
        source = torch.randn(copied)
        target = torch.empty_like(source)
        tasks: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
        for dtype in (torch.float32, torch.float64):
            a = torch.randn(side, side, dtype=dtype)
            tasks[str(dtype)] = partial(torch.mm, a, a, out=torch.empty_like(a))
        seconds = {name: median(samples) for name, samples in turns(tasks, rounds, process_time).items()}
        products = 2 * side**3
        return Machine(
            8 * copied / seconds["copy"], products / seconds["torch.float32"], products / seconds["torch.float64"]
        )

    def __str__(self) -> str:
        return (
            f"Roofline: copy {self.copy / 1e9:.1f} GB/s, torch.mm {self.sgemm / 1e9:.0f} GF/s in float32, "
            f"{self.dgemm / 1e9:.0f} GF/s in float64"
        )

    def flops(self, dtype: torch.dtype) -> float:
        return self.dgemm if dtype == torch.float64 else self.sgemm

    @staticmethod
    def description() -> dict[str, str | int | dict[str, str]]:
        """The processor, its cores, and the versions of what is measured."""
        return {
            "processor": _processor(),
            "cores": os.cpu_count() or 1,
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
        }


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
